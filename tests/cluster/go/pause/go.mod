module lockstep.test/cluster/pause

go 1.25.0
