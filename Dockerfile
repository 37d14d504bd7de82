# `maskclip serve` on CPUs; docs/serve.md says how it is run. `make dist` tries these steps without Docker.

FROM python:3.13-slim AS packages
# Which build of PyTorch: the one for CPUs from PyTorch's own index, or, if empty, the locked one with CUDA.
ARG TORCH=cpu
WORKDIR /opt/build
COPY requirements-uv.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements-uv.txt
ENV VIRTUAL_ENV=/opt/maskclip UV_CACHE_DIR=/opt/uv
RUN python -m venv --without-pip /opt/maskclip
COPY pyproject.toml requirements.txt ./
RUN --mount=type=cache,target=/opt/uv \
    sed -n 's/^\(torch\(vision\)\{0,1\}==[^ ]*\) .*/\1/p' requirements.txt > torch.txt \
    && if [ -n "$TORCH" ]; then \
        uv pip install --compile-bytecode --no-deps --torch-backend "$TORCH" --requirement torch.txt; \
    fi
RUN --mount=type=cache,target=/opt/uv \
    uv pip install --compile-bytecode --constraint requirements.txt --requirement pyproject.toml \
        --extra web --extra photo --extra regions --extra images

FROM packages AS package
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/opt/uv \
    uv pip install --compile-bytecode --build-constraint requirements.txt \
        --no-deps --prefix /opt/added .

FROM python:3.13-slim
RUN useradd --create-home --uid 1000 maskclip \
    && install --directory --owner maskclip --group maskclip /home/maskclip/.cache
COPY --from=packages /opt/maskclip /opt/maskclip
COPY --from=package /opt/added /opt/maskclip
ENV PATH=/opt/maskclip/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/maskclip
# Weights, the rows of words, and graphs.
VOLUME /home/maskclip/.cache
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["sh", "-c", ": \"${MASKCLIP_KEY:?choose a key that requests must bring: docker run -e MASKCLIP_KEY=... -p 8000:8000 maskclip}\"; exec maskclip serve --host 0.0.0.0 --port 8000"]
