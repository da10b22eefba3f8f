# Sourced by the other scripts: `install EXTRA` brings .venv up to date with this checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

# A virtual environment belongs to the place where it was made and to the Python that made it.
works() {
  .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# What an installation depends on: a change of any of these calls for a new one.
fingerprint() {
  { pwd; .venv/bin/python --version; cat pyproject.toml; echo "$1"; } | sha256sum
}

install() {
  local extra="${1:-}" stamp
  works || { rm -rf .venv && "${PYTHON:-python3}" -m venv .venv; }
  stamp=".venv/installed${extra:+-with-$extra}"
  [[ -f $stamp && "$(cat "$stamp")" == "$(fingerprint "$extra")" ]] && return
  echo "installing distsgd${extra:+[$extra]} into .venv" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}" >&2
  fingerprint "$extra" >"$stamp"
}
