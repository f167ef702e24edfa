# An image with the C program and a model, and nothing else: 1.3 MB with the 2m model in 4 bits.
#
#   docker build -f docker/generate.Dockerfile -t storyllamas .
#   docker run --rm storyllamas --seed 7 "Once upon a time"
#
# Another model: --build-arg MODEL=models/30m/export/q8.slm

FROM alpine:3.22 AS build
RUN apk add --no-cache gcc make musl-dev
COPY csrc /csrc
RUN make -C /csrc run LDFLAGS="-static -s"

FROM scratch
ARG MODEL=models/pretrained/tinystories-2m-q4.slm
COPY LICENSE /LICENSE
COPY --from=build /csrc/build/run /run
COPY ${MODEL} /model.slm
USER 65534:65534
ENTRYPOINT ["/run", "/model.slm"]
CMD ["--seed", "random"]
