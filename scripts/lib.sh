# Shared by the scripts: find a Python, make the virtual environment, see to the programs that are needed. Source it.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${UNDERLAY_VENV:-$ROOT/.venv}

# What the tests use, as PROGRAM=PACKAGE; without one of them the tests that need it skip.
TEST_PROGRAMS=(
    qemu-img=qemu-utils qemu-system-x86_64=qemu-system-x86 qemu-storage-daemon=qemu-system-common strace=strace curl=curl
    docker-registry=docker-registry
    mkfs.vfat=dosfstools mkfs.ntfs=ntfs-3g mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.ext4=e2fsprogs fuse2fs=fuse2fs
    gzip=gzip pigz=pigz xz=xz-utils pixz=pixz zstd=zstd bzip2=bzip2 pbzip2=pbzip2
    libvirtd=libvirt-daemon virsh=libvirt-clients ip=iproute2 gcc=gcc pkg-config=pkg-config
    gpgv=gpgv gpg=gnupg npm=npm
    ceph=ceph-common ceph-mon=ceph-mon ceph-osd=ceph-osd ceph-mgr=ceph-mgr
    linux.uml=user-mode-linux lvs=lvm2 cryptsetup=cryptsetup-bin dmsetup=dmsetup thin_check=thin-provisioning-tools modprobe=kmod
    ploop=ploop
)
# What they use besides, as FILE=PACKAGE: libvirt's driver for QEMU, QEMU's for Ceph, what libvirt's Python module is built
# with, and Ceph's modules.
TEST_FILES=(
    "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so=libvirt-daemon-driver-qemu"
    "/usr/lib/*/qemu/block-rbd.so=qemu-block-extra"
    "/usr/lib/*/pkgconfig/libvirt.pc=libvirt-dev"
    "/usr/lib/python3/dist-packages/rados.*.so=python3-rados" "/usr/lib/python3/dist-packages/rbd.*.so=python3-rbd"
)

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# find_python: print the first Python >= 3.11
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; set PYTHON to one"
}

# make_environment EXTRA: the package and its dependencies in $VENV, again when pyproject.toml or the Python changed
make_environment() {
    local python stamp
    python=$(find_python)
    stamp="$("$python" -V) $(cksum <"$ROOT/pyproject.toml") $ROOT"
    # What has the extra has all without it, so that the scripts do not undo each other's work.
    if grep -qxF -- "$stamp" "$VENV/stamp$1" 2>/dev/null || grep -qxF -- "$stamp" "$VENV/stamp[dev]" 2>/dev/null; then
        return
    fi
    echo "${0##*/}: setting up $VENV" >&2
    make_venv "$python"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$ROOT$1" \
        || die "pip could not install the dependencies"
    echo "$stamp" >"$VENV/stamp$1"
}

# make_venv PYTHON: Debian and Ubuntu keep the half of venv in a package of its own
make_venv() {
    "$1" -m venv "$VENV" >/dev/null 2>&1 && return
    rm -rf "$VENV"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "please type: sudo apt-get install --no-install-recommends python3-venv"
    fi
    install_packages python3-venv
    "$1" -m venv "$VENV" || die "'$1 -m venv $VENV' failed"
}

# need_programs PROGRAM=PACKAGE…: install what is missing with apt when we are root, else say what to type
need_programs() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "please type: sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    install_packages "${packages[@]}"
}

# need_files FILE=PACKAGE…: as need_programs, of files; a pattern may name them
need_files() {
    local pair packages=()
    for pair in "$@"; do
        compgen -G "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# need_libvirt_module: libvirt's Python module, of the release of the library that is here
need_libvirt_module() {
    "$VENV/bin/python" -c 'import libvirt' 2>/dev/null && return
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "libvirt-python==$(pkg-config --modversion libvirt)" \
        || die "pip could not build libvirt-python"
}

# need_ceph_modules: the distribution's Python modules of Ceph, which no package index has, where the Python is of its release
need_ceph_modules() {
    local suffix modules=$VENV/lib/ceph
    suffix=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    [ -e "/usr/lib/python3/dist-packages/rbd$suffix" ] || return 0
    mkdir -p "$modules"
    ln -sfn "/usr/lib/python3/dist-packages/rados$suffix" "/usr/lib/python3/dist-packages/rbd$suffix" "$modules"
    echo "$modules" >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ceph.pth"
}

# install_packages PACKAGE…: by apt, as root
install_packages() {
    echo "${0##*/}: installing $*" >&2
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "$@" >/dev/null
}
