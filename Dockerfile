# One image for every service; docker-compose.yml gives each its command.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/bros-batch

COPY pyproject.toml README.md ./
COPY bros_batch bros_batch
COPY cli cli
COPY engine engine
COPY migrations migrations

# Unpinned torch is its CUDA build, which the engine needs on a GPU host; the other services never load it.
RUN pip install ".[postgres]" \
    && useradd --create-home --uid 1000 bros \
    && install -d -o bros -g bros -m 0700 /data

USER bros
ENV BROS_DATA_DIR=/data
VOLUME /data
ENTRYPOINT ["bros-batch"]
CMD ["--help"]
