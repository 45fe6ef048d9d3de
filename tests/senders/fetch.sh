#!/bin/sh
# Unpacks the senders that are not Python's into a folder: Debian's log daemons (unpacked, not
# installed: the two exclude each other, and no service is to be started) and npm's packages.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
libraries="libestr0 libfastjson4 liblognorm5 libivykis0 libnet1 libpcre3 libwrap0 libcurl4"
daemons="rsyslog rsyslog-elasticsearch syslog-ng-core syslog-ng-mod-http"
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $libraries curl >/dev/null
command -v npm >/dev/null || apt-get install -qq -y --no-install-recommends npm >/dev/null
# shellcheck disable=SC2086
apt-get -qq download -o APT::Sandbox::User=root $daemons
for package in ./*.deb; do dpkg-deb --extract "$package" debian; done
rm -f ./*.deb
cp "$here/package.json" .
npm install --silent --no-audit --no-fund --no-package-lock
