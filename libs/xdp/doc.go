// Package xdp is the one XDP program of an interface: what it stops, what it counts and where the rest
// goes. The program (bpf/gate.c) looks at never-block entries, then at rules, then at address lists; what
// is left, the interface's mode forwards, passes or redirects to AF_XDP sockets.
//
// Program, link and maps stay pinned below a bpffs, so they outlive every process: Open loads and attaches
// them or opens what another process pinned. Several processes may hold a Gate of one interface; changes
// are made under a lock on the pin directory. A Gate's methods may be called by several goroutines.
//
// Linux 5.15 or newer, amd64 and arm64: little-endian, and words may be read at any address. Native XDP is tried first,
// generic XDP is the fallback. VLAN tags that the network card strips are not seen by any XDP program.
package xdp
