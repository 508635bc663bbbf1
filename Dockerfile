# The program for containers: docker build -t rpicluster .
# Only linux/amd64 has been built and tested; both base images also exist for linux/arm64 and linux/arm/v7.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# Frames keep the names of functions; line numbers would make the program several times as large.
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
# What is below is built in two layers. This one holds the dependencies, and is built anew only when a manifest changes:
# each crate is empty in it.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY crates/bench/Cargo.toml crates/bench/
COPY crates/broker/Cargo.toml crates/broker/
COPY crates/client/Cargo.toml crates/client/
COPY crates/core/Cargo.toml crates/core/
COPY crates/machine/Cargo.toml crates/machine/
COPY crates/master/Cargo.toml crates/master/
COPY crates/protocol/Cargo.toml crates/protocol/
COPY crates/rpicluster/Cargo.toml crates/rpicluster/
COPY crates/slave/Cargo.toml crates/slave/
RUN for crate in crates/*; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done && \
    echo 'fn main() {}' > crates/rpicluster/src/main.rs
RUN cargo build --release --locked -p rpicluster && cargo clean --release --workspace && rm -r crates
COPY crates crates
RUN cargo build --release --locked -p rpicluster

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="rpicluster" \
      org.opencontainers.image.description="A cluster of Raspberry Pis over MQTT: the master with its broker, and the slaves" \
      org.opencontainers.image.licenses="MIT"
# Volumes take over owner and mode of these folders; secrets lie in them.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rpicluster && \
    install --directory --owner 10001 --group 10001 --mode 0700 \
        /var/lib/rpicluster /var/lib/rpicluster-slave /var/lib/rpicluster-token /external
COPY --from=build /src/target/release/rpicluster /usr/local/bin/
USER 10001:10001
EXPOSE 8080 8883
# Others reach a container by its own addresses only, so HTTP listens on them: encrypted, and with a token.
ENV RPICLUSTER__MASTER__HTTP=0.0.0.0:8080 RPICLUSTER_URL=https://localhost:8080
ENTRYPOINT ["rpicluster"]
CMD ["master"]
# For a slave: --health-cmd "rpicluster health slave", as docker-compose.yml has it.
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["rpicluster", "health"]
