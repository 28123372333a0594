# One image for every part: `dpo api`, `dpo worker`, `dpo migrate`. docs/deploy.md says how to build and run it.
#
#   PYTHON_IMAGE   a Debian with Python 3.11
#   TORCH_INDEX    package index of a torch build; empty: PyPI's own build, which is the one for CUDA
#   COMPILER       Debian packages beside: torch.compile needs a C compiler on a GPU

ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# What the service stands on. No compiler: every package is a wheel, and no op of DeepSpeed is compiled
# (dpo_core/engine.py says why none is needed).
FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
COPY requirements.lock /build/
# A build's local version, 2.13.0+cpu, counts as newer than PyPI's 2.13.0, so pip takes it where an index has it.
# Everything is compiled to bytecode here: a trainer that starts can't write it, and would compile it every time.
RUN /opt/venv/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /build/requirements.lock


FROM packages AS wheel
COPY . /build/
RUN /opt/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /build


FROM ${PYTHON_IMAGE}
ARG COMPILER=
# tini passes SIGTERM on, and reaps the ranks that a killed torchrun leaves behind.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tini ${COMPILER} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home dpo \
    && install -d -o dpo -g dpo /data
COPY --from=packages /opt/venv /opt/venv
# A layer of its own: a change of our code leaves the big one as it is.
COPY --from=wheel /wheels /tmp/wheels
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl && rm -r /tmp/wheels
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER dpo
WORKDIR /data
ENTRYPOINT ["tini", "--", "dpo"]
CMD ["--help"]
