package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
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

// readPackets is AF_PACKET with a ring of 64 MiB and a loop that sleeps when there is nothing.
func readPackets(j readerJob, stop *atomic.Bool) (received uint64, err error) {
	cfg := afpacket.DefaultConfig(j.Iface)
	cfg.Ring = 64 << 20
	list, err := afpacket.Open(cfg)
	if err != nil {
		return 0, err
	}
	s := list[0]
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Start(); err != nil {
		return 0, err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return 0, err
	}
	var frames [64]afxdp.Frame
	for {
		n := s.Receive(frames[:])
		received += uint64(n) //nolint:gosec // not negative
		s.Release()
		if n > 0 {
			continue
		}
		if stop.Load() {
			return received, nil
		}
		if _, err := s.Wait(10 * time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// acknowledge is a classifier at an address that only acknowledges, and has enough of each flow at once, until its standard
// input ends. Then it prints how old stamped packets were when it had them, as loadgen.Delays.
func acknowledge(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(4<<20), grpc.Creds(insecure.NewCredentials()))
	a := &acknowledger{delays: loadgen.NewDelays()}
	classifyv1.RegisterClassifyServiceServer(srv, a)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		srv.Stop()
	}()
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	if err := srv.Serve(l); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return json.NewEncoder(os.Stdout).Encode(a.delays)
}

type acknowledger struct {
	classifyv1.UnimplementedClassifyServiceServer

	mu     sync.Mutex
	delays loadgen.Delays
}

// note counts the delays of a batch's packets with payload.
func (a *acknowledger) note(s *flowv1.FlowSegments) {
	a.mu.Lock()
	defer a.mu.Unlock()
	data := s.GetData()
	for i := range int(s.GetCount()) {
		n := int(flow.Column(s.GetLength()).U16(i))
		if age, ok := loadgen.Age(data[:n]); ok {
			a.delays.Add(age)
		}
		data = data[n:]
	}
}

func (a *acknowledger) Stream(s grpc.BidiStreamingServer[classifyv1.StreamRequest, classifyv1.StreamResponse]) error {
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
			a.note(b.GetSegments())
			answer.Published = uint64(flow.Records(b)) //nolint:gosec // not negative
			answer.Enough = b.GetOpens().GetFlowId()
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}
