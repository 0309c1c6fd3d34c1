package xdp

// The object is built by clang 14 so that everyone's build gives the same bytes.
//
//go:generate env GOWORK=off GOFLAGS=-mod=readonly go tool -modfile=../../tools/bpf2go/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3" -no-global-types -target bpfel -output-stem gate gate bpf/gate.c
