# docker build -t video_papr .
# docker run --rm -v "$PWD:/data" video_papr predict video=/data/clip.mp4 output_dir=/data/out
# For processors. Where the index offers torch for CUDA by default, PIP_EXTRA_INDEX_URL names one for CPU, which is far smaller.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL
COPY . /src
RUN pip install --no-cache-dir "/src[app,fast,train]" && rm -rf /src \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["video-papr"]
CMD ["--help"]
