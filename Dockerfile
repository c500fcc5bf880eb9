# roialign for CUDA and CPU:
#
#   docker build -t roialign .
#   docker run --rm --gpus all -v "$PWD:/data" roialign extract images/ boxes.json -o features.h5
#
# The default torch supports CUDA and also runs on the CPU. A smaller image for the CPU only:
#
#   docker build -t roialign:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY roialign_cli roialign_cli
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

# Compiled kernels and downloaded weights. Mount a volume here to keep them. Writable for any --user.
ENV XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba TORCH_HOME=/cache/torch MPLCONFIGDIR=/cache/matplotlib
RUN mkdir -m 1777 /cache

WORKDIR /data
USER 1000:1000
ENTRYPOINT ["roialign"]
CMD ["--help"]
