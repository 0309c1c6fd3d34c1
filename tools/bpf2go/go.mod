module github.com/tidegate-mesh/tidegate/tools/bpf2go

go 1.24.0

tool github.com/cilium/ebpf/cmd/bpf2go

require (
	github.com/cilium/ebpf v0.21.0 // indirect
	golang.org/x/sys v0.37.0 // indirect
)
