# The container image of HyPS-BIDS: the app, its weights and its demo, for x86-64; nothing is
# fetched when it runs.
#
#     docker build -t hyps-bids .
#     docker run --rm -v BIDS:/data:ro -v OUT:/out -u "$(id -u):$(id -g)" hyps-bids /data /out participant
#
# PyTorch's CPU build is on PyTorch's own package index only. Give that index, as PyTorch's
# installation page names it, or put the wheel into constraints/ :
#
#     docker build --build-arg PIP_EXTRA_INDEX_URL=... -t hyps-bids .
#
# With --build-arg VARIANT=cuda the image is for NVIDIA GPUs (CUDA 13), from the ordinary index,
# and several GB larger.

# To rebuild the same image later, give a digest: --build-arg BASE=debian@sha256:...
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
 && apt-get install -y --no-install-recommends "python3=3.11.*" "python3-venv=3.11.*" \
 && rm -rf /var/lib/apt/lists/*

# The app's environment has no pip; the pip of another environment installs into it.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/hyps-bids
ENV PATH=/opt/pip/bin:$PATH
WORKDIR /build

# Layers that seldom change come first: PyTorch, then the other dependencies, then the app.
COPY constraints/ constraints/
RUN sed -n '/^torch==/,/[^\\]$/p' "constraints/image-${VARIANT}.txt" > torch.txt \
 && pip --python /opt/hyps-bids/bin/python install --no-deps --require-hashes --find-links constraints -r torch.txt \
 || { echo "ERROR: PyTorch could not be installed ($(sed "s, .*,,;q" torch.txt)). Its CPU build is not on" \
           "the ordinary package index: build with --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's CPU" \
           "index>, or put the wheel into constraints/, or build with --build-arg VARIANT=cuda" >&2; exit 1; }
RUN pip --python /opt/hyps-bids/bin/python install --no-deps --require-hashes --find-links constraints -r "constraints/image-${VARIANT}.txt" \
 && pip install --require-hashes -r constraints/image-build.txt
# Remove the tests, headers and build tools of libraries. OpenVINO only runs on the CPU and gets its
# graphs from the app, so its plugins for other devices and its readers of models are removed (89 MB).
# -x skips files with the syntax of a later Python.
RUN cd /opt/hyps-bids/lib/python3.11/site-packages \
 && rm -rf torch/test torch/include torch/share openvino/include openvino/cmake \
 && rm -r openvino/libs/*_intel_[gn]pu_* openvino/libs/cache.json openvino/libs/*_frontend.so* openvino/frontend/*/ \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x py312_ .

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY hyps_bids/ hyps_bids/
# -I ignores the caller's PYTHON* variables and the packages in their home folder.
RUN pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir wheel . \
 && pip --python /opt/hyps-bids/bin/python install --no-deps --no-index wheel/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/hyps-bids/lib/python3.11/site-packages/hyps_bids \
 && sed -i '1s/$/ -I/' /opt/hyps-bids/bin/hyps-bids /opt/hyps-bids/bin/hyps-tools

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends "python3=3.11.*" \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf /var/log/apt /var/log/dpkg.log \
 && ln -s /opt/hyps-bids/bin/hyps-bids /opt/hyps-bids/bin/hyps-tools /usr/local/bin/
COPY --from=build /opt/hyps-bids /opt/hyps-bids

ARG VERSION=0.2.0
ARG NAME=hyps-bids
# The tag is written to dataset_description.json. LOGNAME is set because a library asks for the
# user's name, and a user without a passwd entry has none.
ENV HYPS_BIDS_CONTAINER=${NAME}:${VERSION} \
    LANG=C.UTF-8 \
    LOGNAME=hyps-bids \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="HyPS-BIDS" \
      org.opencontainers.image.description="BIDS App: hippocampus segmentation of T1-weighted MRI" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0 AND CC0-1.0" \
      org.opencontainers.image.documentation="https://arxiv.org/abs/2409.00884"
# A batch job offers no service to query; this check tells that the installation is complete.
HEALTHCHECK --interval=10m --timeout=30s CMD ["hyps-bids", "--version"]
# The app itself is process 1, so it receives the signals.
ENTRYPOINT ["hyps-bids"]
CMD ["--help"]
