# The broker's processes (release, web, worker, sweeper, scheduler): one image, the command chooses.
# Images are pinned by version here and by digest at deploy (docker buildx imagetools inspect <image>).

FROM python:3.12.12-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/broker
# what we stand on changes seldom: its own layer, every file checked against its hash
COPY requirements/production.txt requirements/
RUN /opt/broker/bin/pip install --require-hashes -r requirements/production.txt
COPY pyproject.toml README.md ./
COPY broker_core broker_core
COPY workers workers
COPY migrations migrations
RUN /opt/broker/bin/pip install --no-deps --no-build-isolation . && /opt/broker/bin/pip check

FROM python:3.12.12-slim-trixie
# no .pyc is written: the root file system is read-only where this runs
ENV PATH=/opt/broker/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin broker
COPY --from=build /opt/broker /opt/broker
USER 10001:10001
WORKDIR /
ENTRYPOINT ["broker"]
CMD ["--help"]
