# One image for server, worker and deployments:  docker compose up  (see compose.yaml)
FROM python:3.11-slim

RUN useradd --create-home stepladder && mkdir /data && chown stepladder /data
WORKDIR /app
COPY pyproject.toml constraints.txt LICENSE README.md prefect.yaml ./
COPY automations automations
COPY flows flows
COPY tasks tasks
# Editable: the code that runs is the code whose changes are followed.
RUN pip install --no-cache-dir --editable . --constraint constraints.txt
USER stepladder
ENV STEPLADDER_DATA=/data PYTHONUNBUFFERED=1 DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false
VOLUME /data
CMD ["stepladder", "--help"]
