# An image that trains the model that params.yaml names and prints a story.
#
#   docker build -f docker/train.Dockerfile -t storyllamas-train .
#   docker run --rm -v "$PWD/models:/storyllamas/models" storyllamas-train
#
# With a GPU: --build-arg PIP_EXTRA_INDEX_URL= for the build, --gpus all for the run. Another
# command stands after the name of the image, such as `make sizes`.

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /storyllamas
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# PyTorch has a layer of its own, which a change of the code keeps.
COPY constraints.txt ./
RUN python -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir -c constraints.txt torch
COPY . .
RUN make setup
VOLUME ["/storyllamas/models"]
CMD ["make", "story"]
