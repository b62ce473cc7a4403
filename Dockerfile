# docker build -t pedestal .
# docker build -t pedestal --build-arg BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime --build-arg EXTRAS=demo .
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRAS=""
ENV HOME=/home/pedestal PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /source
COPY . .
RUN python -m pip install ".${EXTRAS:+[$EXTRAS]}" && rm -rf build \
    && useradd --home-dir /home/pedestal --create-home pedestal && chmod 777 /home/pedestal
USER pedestal
WORKDIR /home/pedestal/work
ENTRYPOINT ["pedestal"]
CMD ["--help"]
