# Lockstep's three programs, static, and nothing else: no shell, no package.
# Pods name the program that they run: /bin/lockstep-operator,
# /bin/lockstep-replica or /bin/lockstep.
#
# tests/cluster/build-image makes target/image and builds this, with Docker or
# without any container engine; so only what tests/cluster/go/image understands
# may be used here.
FROM scratch
COPY target/image/ /
ENV PATH=/bin
USER 65532:65532
ENTRYPOINT ["/bin/lockstep"]
