# Needs BuildKit, which is in Docker since 18.09, and no frontend from a registry.
#
# docker build -t kserve-lmcache:0.1.0-gpu .
# docker build -t kserve-lmcache:0.1.0-cpu --build-arg DEVICE=cpu .
# docker build -t kserve-lmcache:0.1.0-on-kserve --target on-kserve .
#
# A release pins its base by digest and attests what it was made of:
#   docker buildx build --sbom=true --provenance=true \
#     --build-arg BASE_IMAGE=python:3.12-slim-bookworm@sha256:… .
# The list of all Python packages is in the image as well: /usr/share/sbom/kserve-lmcache.cdx.json.
# Budget, unpacked: 4 GB for the CPU, 15 GB for the GPU (tests/packaging/test_dockerfile.py).

ARG DEVICE=gpu
ARG BASE_IMAGE=python:3.12-slim-bookworm
ARG KSERVE_IMAGE=kserve/huggingfaceserver:v0.21.0-gpu

# Where packages come from, as pip's variables say it: PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, PIP_CERT. They
# are build arguments, and no layer of the image holds them.

#################### our package, as a wheel ####################
FROM ${BASE_IMAGE} AS package
ARG PIP_VERSION=25.3
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
# For images whose virtual environment has no pip of its own.
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --target /pip "pip==${PIP_VERSION}"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY runtime/ runtime/
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

#################### its dependencies ####################
FROM ${BASE_IMAGE} AS builder
ARG DEVICE
ARG TORCH_CPU_VERSION=2.13.0+cpu
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
# Some locked packages have no wheel for every platform.
# Debian serves only the newest build of a version, so that a pin would break with every update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
# The CPU build of torch is on PyTorch's own index alone, so it cannot stand in the lock; the
# GPU build does.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "${DEVICE}" = cpu ]; then \
        pip install --no-deps \
            --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH_CPU_VERSION}"; \
    fi
COPY requirements/ /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r "/requirements/${DEVICE}.txt"
# For stores whose client is a package of its own: mooncake-transfer-engine==…, infinistore==….
# Whoever names them names their versions.
ARG EXTRA_PACKAGES=""
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "${EXTRA_PACKAGES}" ]; then \
        # shellcheck disable=SC2086 # a list of words
        pip install --no-deps ${EXTRA_PACKAGES}; \
    fi

#################### the list of what is in it ####################
FROM builder AS sbom
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --no-deps --require-hashes -r /requirements/sbom.txt
RUN --mount=type=bind,from=package,source=/dist,target=/dist \
    pip install --no-cache-dir --no-deps /dist/*.whl \
    && /opt/sbom/bin/cyclonedx-py environment --output-reproducible \
        --output-file /kserve-lmcache.cdx.json /opt/venv/bin/python3

#################### what each device needs of the system ####################
# Triton compiles its launchers while serving.
FROM ${BASE_IMAGE} AS system-gpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# torch.compile writes C++ on a CPU.
FROM ${BASE_IMAGE} AS system-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    # By name, since the directory differs between architectures; the loader only warns about a
    # name that it cannot find, so the build looks.
    && LD_PRELOAD=libtcmalloc_minimal.so.4 sh -c "grep -q tcmalloc /proc/self/maps"
ENV LD_PRELOAD=libtcmalloc_minimal.so.4

#################### our package on KServe's own image ####################
# Its vLLM and LMCache stay as they are. Its virtual environment is first on PATH, belongs to
# uid 1000, and may lack pip.
FROM ${KSERVE_IMAGE} AS on-kserve
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="kserve-lmcache on KServe's image" \
      org.opencontainers.image.description="KServe's Hugging Face server image with KV-cache offloading by LMCache" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 1000
RUN --mount=type=bind,from=package,source=/dist,target=/mnt \
    --mount=type=bind,from=package,source=/pip,target=/media \
    PYTHONPATH=/media python3 -m pip install --no-cache-dir --no-deps /mnt/*.whl
COPY --chmod=0755 entrypoint.sh /usr/local/bin/entrypoint.sh
# In front of vLLM's own `vllm`, which is the next one on PATH.
COPY --chmod=0755 vllm.sh /opt/kserve-lmcache/bin/vllm
ENV PATH=/opt/kserve-lmcache/bin:${PATH} \
    HOME=/tmp \
    HF_HOME=/tmp/hf
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]

#################### the runtime (the default target) ####################
# The stage's name is no image to tag.
# hadolint ignore=DL3006
FROM system-${DEVICE} AS runtime
ARG DEVICE
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="kserve-lmcache" \
      org.opencontainers.image.description="KServe predictor runtime: vLLM with KV-cache offloading by LMCache (${DEVICE})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# A new volume on the second folder gets the folder's owner, and any user with group 0 may write there.
RUN useradd --create-home --uid 1000 kserve \
    && install -d -o 1000 -g 0 -m 2775 /var/cache/kserve-lmcache
COPY --from=builder /opt/venv /opt/venv
# What changes with every version of ours comes last: a new version is a pull of some megabytes.
# /mnt exists: a build leaves the folder behind that it mounts on.
RUN --mount=type=bind,from=package,source=/dist,target=/mnt \
    /opt/venv/bin/pip install --no-cache-dir --no-deps /mnt/*.whl
COPY --from=sbom /kserve-lmcache.cdx.json /usr/share/sbom/kserve-lmcache.cdx.json
COPY --chmod=0755 entrypoint.sh /usr/local/bin/entrypoint.sh
# Services on several nodes start by this one (servingruntime/base/multinode).
COPY --chmod=0755 multinode.sh /usr/local/bin/multinode.sh
# In front of vLLM's own `vllm`, which is /opt/venv/bin/vllm: KServe's LLMInferenceService starts `vllm serve`.
COPY --chmod=0755 vllm.sh /opt/kserve-lmcache/bin/vllm
# With a read-only root file system, and for any user, every cache below ~ (numba, vLLM, Triton, torch)
# is in the one folder that can be written to.
ENV PATH=/opt/kserve-lmcache/bin:/opt/venv/bin:${PATH} \
    HOME=/tmp \
    HF_HOME=/tmp/hf
WORKDIR /home/kserve
USER 1000
EXPOSE 8080
# For the port and the protocol of the default. Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=6s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('localhost', 8080, timeout=5); c.request('GET', '/v2/health/ready'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
