# decero on a CPU, or on an NVIDIA GPU: docs/guides/package.md
#   docker build --tag decero .
#   docker build --tag decero:gpu --build-arg BACKEND=cu130 .
FROM python:3.13-slim
# What uv calls --torch-backend: cpu; cu130 and others for a GPU. The driver is that of the host.
ARG BACKEND=cpu
ARG TORCH=torch==2.13.0
ARG EXTRAS=quickstart,explain,peft
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --torch-backend "$BACKEND" --constraints constraints.txt "$TORCH" ".[$EXTRAS]" \
    && rm -rf /source/*
WORKDIR /work
ENTRYPOINT ["decero"]
CMD ["--help"]
