# An image for training on NVIDIA GPUs:
#
#     docker build -t spectral_dist .
#     docker run --gpus all -v "$PWD:/data" spectral_dist train --config level1 --data_paths text.txt
#
# Texts, checkpoints and the cache of compiled programs are in /data, which is mounted.
FROM python:3.12-slim

COPY . /src
RUN pip install --no-cache-dir '/src[cuda12,store]' \
    && rm -r /src \
    && useradd --create-home --uid 1000 trainer

USER trainer
WORKDIR /data
ENV PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/data/.cache
ENTRYPOINT ["spectral-dist"]
CMD ["--help"]
