#!/usr/bin/env bash
# Renew the lock files of the container images, image-*.txt, which list every package with its version
# and hashes. cpu.txt and the existing locks decide the versions; to upgrade other packages, delete
# the locks first. This needs uv and downloads only descriptions of packages.
#
#     constraints/lock.sh WHEELS     # a folder with the wheel of PyTorch's CPU build for Python 3.11
set -euo pipefail
wheels=$(realpath "${1:?usage: constraints/lock.sh WHEELS, a folder with the CPU wheel of torch}")
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="constraints/lock.sh WHEELS"

lock() {
  uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 "$@" >/dev/null
}

# torch asks for setuptools, which is only needed to build extensions, and OpenVINO for a package
# that reports its use over the network.
app=(pyproject.toml --constraints constraints/cpu.txt --no-emit-package setuptools
  --no-emit-package openvino-telemetry)
lock "${app[@]}" --find-links "$wheels" --output-file constraints/image-cpu.txt
lock "${app[@]}" --output-file constraints/image-cuda.txt
sed -n '/^\[build-system\]/,/^\[project\]/s/^requires = \["\(.*\)"\]/\1/p' pyproject.toml |
  lock - --output-file constraints/image-build.txt
