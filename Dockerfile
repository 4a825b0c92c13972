# Images of cosurfgs_jax, for CPUs and, as --target=cuda, for NVIDIA GPUs:
#   docker build -t cosurfgs .
#   docker run --rm -v "$PWD":/data --user "$(id -u):$(id -g)" cosurfgs doctor
#   docker build -t cosurfgs --target=cuda .
# No image has been built yet. What pip does for the image for CPUs was run by hand in a virtual
# environment; that for GPUs was not, and the tag of NVIDIA's image wants a look. A test holds files,
# extras and system packages to those of the repository (tests/unit/test_dockerfile.py).

FROM python:3.12-slim-bookworm AS build-cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/cosurfgs
ENV PATH=/opt/cosurfgs/bin:$PATH
COPY requirements.txt ./
RUN pip install --no-cache-dir -c requirements.txt cmake ninja scikit-build-core jaxlib
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY cmake cmake
COPY configs configs
COPY cosurfgs_jax cosurfgs_jax
RUN pip install --no-cache-dir --no-build-isolation -c requirements.txt ".[mesh,geo,sfm,report]"

# nvcc is needed for the build alone: the package links CUDA's runtime statically, and JAX's wheels
# bring the other libraries.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/cosurfgs
ENV PATH=/opt/cosurfgs/bin:$PATH
COPY requirements.txt ./
RUN pip install --no-cache-dir -c requirements.txt cmake ninja scikit-build-core jaxlib
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY cmake cmake
COPY configs configs
COPY cosurfgs_jax cosurfgs_jax
ENV COSURFGS_CUDA=ON
RUN pip install --no-cache-dir --no-build-isolation -c requirements.txt ".[mesh,geo,sfm,report,cuda13]"

FROM ubuntu:24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 \
    libegl1 libgl1 libgomp1 libidn2-0 libudev1 libusb-1.0-0 libx11-6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/cosurfgs /opt/cosurfgs
ENV PATH=/opt/cosurfgs/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
ENTRYPOINT ["cosurfgs"]

# The last one is what `docker build` makes.
FROM python:3.12-slim-bookworm AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends \
    libegl1 libgl1 libgomp1 libidn2-0 libudev1 libusb-1.0-0 libx11-6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-cpu /opt/cosurfgs /opt/cosurfgs
ENV PATH=/opt/cosurfgs/bin:$PATH
WORKDIR /data
ENTRYPOINT ["cosurfgs"]
