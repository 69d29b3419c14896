# One image for every service; docker-compose.yml sets the command of each.
FROM python:3.12-slim

# Kernels that the engine has compiled outlive its container.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 TRITON_CACHE_DIR=/data/triton
WORKDIR /opt/bros-batch

COPY pyproject.toml README.md LICENSE ./
COPY bros_batch bros_batch
COPY cli cli
COPY engine engine
COPY migrations migrations

# The default torch wheel is the CUDA build, which the engine needs on a GPU host. Other services never import torch.
RUN pip install ".[postgres]" \
    && useradd --create-home --uid 1000 bros \
    && install -d -o bros -g bros -m 0700 /data

USER bros
ENV BROS_DATA_DIR=/data
VOLUME /data
ENTRYPOINT ["bros-batch"]
CMD ["--help"]
