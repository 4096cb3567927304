# Shared by tools/run and tools/test: what must be installed, and building. Source it; it defines functions only.
# Everything it says goes to stderr: the stdout of tools/run is memattach's.

BUILD_PACKAGES=(g++ cmake ninja-build pkg-config libelf-dev libdw-dev libfmt-dev libcli11-dev
  nlohmann-json3-dev zlib1g-dev doctest-dev python3)

say() { printf '%s\n' "$*" >&2; }

# Runs a command as root: as it is, or through sudo, which may ask for the password.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "this needs root, and there is no sudo: $*"
    return 1
  fi
}

# Those of the named Debian packages that aren't installed, one a line.
missing_packages() {
  local package
  for package in "$@"; do
    # Also "not-installed", of packages that dpkg has heard of.
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

# install_packages REASON PACKAGE…: installs what is missing of them; nothing is asked of apt when nothing is.
install_packages() {
  local reason=$1
  shift
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    local tool
    for tool in g++ cmake ninja pkg-config; do
      command -v "$tool" >/dev/null && continue
      say "This isn't a Debian or Ubuntu system, and $tool is missing. Install the equivalents of: $*"
      return 1
    done
    return 0
  fi
  local missing
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} = 0 ] && return 0
  say "Installing ${#missing[@]} packages $reason: ${missing[*]}"
  [ "$(id -u)" = 0 ] || say "(through sudo, because apt-get needs root)"
  local log
  log=$(mktemp)
  # A new machine's own unattended upgrades may hold apt's locks for some minutes.
  if ! { as_root apt-get -o DPkg::Lock::Timeout=300 update && as_root env DEBIAN_FRONTEND=noninteractive apt-get \
    -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt-get failed; all it said is in $log"
    return 1
  fi
  rm -f "$log"
}

# Those of the named packages that this release of the distribution has, one a line.
known_packages() {
  local package
  for package in "$@"; do
    apt-cache show --no-all-versions "$package" >/dev/null 2>&1 && echo "$package"
  done
  return 0
}

# build PRESET [TARGET…]: configures where that wasn't done yet, and builds. Quiet where there is nothing to do.
# CMAKE_ARGUMENTS are passed to the configuration.
build() {
  local preset=$1
  shift
  local directory=build/$preset targets=()
  [ $# = 0 ] || targets=(--target "$@")
  mkdir -p "$directory"
  local log=$directory/build.log wanted
  wanted=$(cat CMakePresets.json; echo "${CMAKE_ARGUMENTS[*]:-}")
  if [ ! -f "$directory/build.ninja" ] || [ "$wanted" != "$(cat "$directory/configured" 2>/dev/null)" ]; then
    rm -f "$directory/CMakeCache.txt" # another checkout's, or made with other arguments
    if ! cmake --preset "$preset" "${CMAKE_ARGUMENTS[@]}" >"$log" 2>&1; then
      cat "$log" >&2
      return 1
    fi
    printf '%s\n' "$wanted" >"$directory/configured"
  fi
  # The first build takes minutes: it is announced, and on a terminal ninja shows its progress in one line. Later ones
  # are quiet.
  local first=true
  [ -f "$directory/built" ] && first=false
  $first && say "Building (preset $preset) …"
  if $first && [ -t 2 ]; then
    cmake --build --preset "$preset" "${targets[@]}" >&2 || return 1
  elif ! cmake --build --preset "$preset" "${targets[@]}" >"$log" 2>&1; then
    grep -v '^\[' "$log" | tail -n 60 >&2
    say "The build failed; all it said is in $log"
    return 1
  fi
  touch "$directory/built"
}
