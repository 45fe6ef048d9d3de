#!/bin/sh
# Builds rsyslog's omhttp, which Debian does not package, from the source of Debian's own rsyslog, and
# puts it beside the other modules in the folder of unpacked packages that is given.
set -eu
modules=$(cd "$1"/usr/lib/*/rsyslog && pwd)
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p lists/partial
apt-get install -qq -y --no-install-recommends gcc make pkg-config libc6-dev zlib1g-dev \
	libcurl4-openssl-dev libestr-dev libfastjson-dev >/dev/null
# The lists of Debian's sources, for this build alone.
cat /etc/apt/sources.list.d/debian.sources >sources.sources
sed -i 's/^Types: .*/Types: deb-src/' sources.sources
source_lists="-o Dir::Etc::sourcelist=$folder/sources.sources -o Dir::Etc::sourceparts=/dev/null \
	-o Dir::State::lists=$folder/lists -o APT::Sandbox::User=root"
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2086
apt-get -qq $source_lists update
# shellcheck disable=SC2086
apt-get -qq $source_lists source --download-only "rsyslog/$release" 2>/dev/null
tar --extract --file rsyslog_*.orig.tar.gz --strip-components 1
./configure --quiet --enable-omhttp --disable-default-tests --disable-generate-man-pages \
	--disable-klog --disable-libgcrypt --disable-liblogging-stdlog --disable-uuid >/dev/null
make --silent -C contrib/omhttp >/dev/null 2>&1
cp contrib/omhttp/.libs/omhttp.so "$modules"
