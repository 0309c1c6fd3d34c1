package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
)

type captureCmd struct {
	remote  `embed:""`
	Filter  string        `help:"tcpdump's expression, as 'tcp port 443 and host 192.0.2.1' (default: every frame)" placeholder:"EXPR"`
	Output  string        `short:"w" help:"pcap file to write; - = standard output, as for tcpdump -r -" required:"" placeholder:"FILE"`
	Sensor  string        `help:"the sensor; needed where there are several"`
	Iface   string        `help:"one of the sensor's interfaces (default: all)"`
	Count   uint64        `help:"end after so many frames; 0 = bounded by bytes and time" default:"0"`
	Bytes   uint64        `help:"end before the file is larger, at most 1073741824" default:"67108864"`
	For     time.Duration `help:"end after this time, at most 1h" default:"1m"`
	Snaplen uint32        `help:"bytes to keep of a frame; 0 = all" default:"0"`
	JSON    bool          `help:"print how it ended as JSON, on standard error"`
}

// Help is shown below the flags.
func (captureCmd) Help() string {
	return "Only frames that come up to the sensor can be captured. What the driver drops by a rule, or forwards for a flow " +
		"that is decided, does not; how many frames that were meanwhile, of any kind, is told at the end. A signal ends the capture; the file is whole."
}

func (c *captureCmd) Run(t *terminal) error {
	if c.For < time.Millisecond || c.For > time.Hour {
		return config.Usagef("--for %s: give a time from 1ms to 1h", c.For)
	}
	o, err := c.find(c.files())
	if err != nil {
		return err
	}
	g, err := client.New(o)
	if err != nil {
		return config.Usagef("%w", err)
	}
	defer g.Close()
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	file := &lateFile{name: c.Output, out: t.out}
	s, err := g.Capture(ctx, api.CaptureInput{
		Sensor: c.Sensor, Iface: c.Iface, Filter: c.Filter, Snaplen: c.Snaplen, Count: c.Count, Bytes: c.Bytes, For: c.For.String(),
	}, file)
	if err := errors.Join(err, file.close()); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(t.err, s)
	}
	return captureText(t.err, &s)
}

func captureText(w io.Writer, s *api.CaptureSummary) error {
	why := map[string]string{
		"count": "the count is reached", "bytes": "the file is as large as it may be", "time": "the time is over", "stopped": "the sensor has ended",
		"interrupted": "interrupted", "expired": "the token has expired",
	}[s.Reason]
	if why == "" {
		why = s.Reason
	}
	text := fmt.Sprintf("%d frames captured: %s\n", s.Frames, why)
	if s.Missed > 0 {
		text += fmt.Sprintf("%d more matched and are missing: they came faster than they could be sent\n", s.Missed)
	}
	for _, n := range []struct {
		frames uint64
		what   string
	}{
		{s.Dropped, "were dropped by rules"}, {s.Forwarded, "were forwarded in the kernel"}, {s.Passed, "went to the machine's stack"},
		{s.Unread, "were lost before the sensor read them"},
	} {
		if n.frames > 0 {
			text += fmt.Sprintf("%d frames of any kind %s meanwhile: a capture cannot have them\n", n.frames, n.what)
		}
	}
	_, err := io.WriteString(w, text)
	return err
}

// lateFile is made when the first bytes come, so that a refused capture leaves what was there. Packets are private: only
// the user may read it.
type lateFile struct {
	name string
	out  io.Writer // for "-"
	file *os.File
}

// Write implements io.Writer.
func (l *lateFile) Write(p []byte) (int, error) {
	if l.name == "-" {
		return l.out.Write(p)
	}
	if l.file == nil {
		f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, fmt.Errorf("write the capture: %w", err)
		}
		l.file = f
	}
	return l.file.Write(p)
}

func (l *lateFile) close() error {
	if l.file == nil {
		return nil
	}
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("write the capture: %w", err)
	}
	return nil
}
