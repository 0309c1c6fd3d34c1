package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

const (
	readerVariable     = "TIDEGATE_BENCH_READER"
	classifierVariable = "TIDEGATE_BENCH_CLASSIFIER"
	// packetSocket is the backend of a reader that takes frames the way tcpdump does, AF_PACKET with a ring of blocks.
	packetSocket = "packet"
)

// readerJob is a process that receives and drops: what capture could be at most on this machine.
type readerJob struct {
	Iface, BPFFS, Backend string
	Frames                int
}

// readFrames receives until its standard input ends, and prints how many frames it had.
func readFrames(text string) error {
	var j readerJob
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	var stop atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop.Store(true)
	}()
	read := readXDP
	if j.Backend == packetSocket {
		read = readPackets
	}
	n, err := read(j, &stop)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(n)
}

// readXDP is the gate in tap mode with one socket and a loop that spins.
func readXDP(j readerJob, stop *atomic.Bool) (received uint64, err error) {
	gate, err := xdp.Open(xdp.Options{Iface: j.Iface, BPFFS: j.BPFFS, Mode: xdp.ModeTap, Geometry: xdp.DefaultGeometry()})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, gate.Close(), xdp.Remove(j.BPFFS, j.Iface)) }()
	cfg := afxdp.DefaultConfig(j.Iface, 0)
	cfg.Backend, cfg.Frames, cfg.RxRing = j.Backend, j.Frames, j.Frames
	s, err := afxdp.Open(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := gate.SetSocket(0, s.FD()); err != nil {
		return 0, err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return 0, err
	}
	var frames [64]afxdp.Frame
	for {
		n := s.Receive(frames[:])
		if n == 0 && stop.Load() {
			return received, nil
		}
		received += uint64(n) //nolint:gosec // not negative
		s.Release()
	}
}

// readPackets is TPACKET_V3 (Linux Documentation/networking/packet_mmap.rst) with 64 blocks of 1 MiB.
func readPackets(j readerJob, stop *atomic.Bool) (received uint64, err error) {
	ifi, err := net.InterfaceByName(j.Iface)
	if err != nil {
		return 0, err
	}
	everything := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return 0, err
	}
	const size, blocks, frame = 1 << 20, 64, 2048
	ring := unix.TpacketReq3{Block_size: size, Block_nr: blocks, Frame_size: frame, Frame_nr: size / frame * blocks, Retire_blk_tov: 10}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &ring); err != nil {
		return 0, err
	}
	memory, err := unix.Mmap(fd, 0, size*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(memory)) }()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: ifi.Index}); err != nil {
		return 0, err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return 0, err
	}
	wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	for at := 0; ; at = (at + 1) % blocks {
		// struct tpacket_block_desc: version, offset of private data, then the status and the number of packets.
		head := (*[4]uint32)(unsafe.Pointer(&memory[at*size])) //nolint:gosec // a mapped block
		for atomic.LoadUint32(&head[2])&unix.TP_STATUS_USER == 0 {
			if stop.Load() {
				return received, nil
			}
			if _, err := unix.Poll(wait, 10); err != nil && !errors.Is(err, unix.EINTR) {
				return 0, err
			}
		}
		received += uint64(head[3])
		atomic.StoreUint32(&head[2], unix.TP_STATUS_KERNEL)
	}
}

// acknowledge is a classifier at an address that only acknowledges, and has enough of each flow at once, until its standard input ends.
func acknowledge(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(4<<20), grpc.Creds(insecure.NewCredentials()))
	classifyv1.RegisterClassifyServiceServer(srv, &acknowledger{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		srv.Stop()
	}()
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	return srv.Serve(l)
}

type acknowledger struct {
	classifyv1.UnimplementedClassifyServiceServer
}

func (*acknowledger) Stream(s grpc.BidiStreamingServer[classifyv1.StreamRequest, classifyv1.StreamResponse]) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := &classifyv1.StreamResponse{Batch: r.GetBatch().GetBatch(), Window: r.GetWindow().GetSequence()}
		if b := r.GetBatch(); b != nil {
			answer.Published = uint64(flow.Records(b)) //nolint:gosec // not negative
			answer.Enough = b.GetOpens().GetFlowId()
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}
