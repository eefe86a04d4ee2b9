module lockstep.test/cluster/image

go 1.25.0
