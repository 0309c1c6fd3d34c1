// Command tidegate-health asks a service on the same machine whether it is ready: the health check of the images, which
// have neither a shell's tools nor curl to rely on.
//
// It prints one line, "ready" or why not, and ends with status 0 or 1. The engine keeps that line in the container's
// health log. It speaks HTTP/1.0 by hand: a client of net/http would triple its size in every image.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"strings"
	"time"
)

// maxBody bounds what is read of an answer, in bytes.
const maxBody = 64 << 10

func main() {
	service := flag.String("service", os.Getenv("TIDEGATE_HEALTH_SERVICE"), "service whose variable TIDEGATE_<SERVICE>_METRICS_LISTEN names the address")
	address := flag.String("address", os.Getenv("TIDEGATE_HEALTH_ADDRESS"), "address of /readyz, host:port, instead of the service's variable")
	timeout := flag.Duration("timeout", 2*time.Second, "how long the answer may take")
	flag.Parse()
	if *address == "" {
		*address = os.Getenv(variable(*service))
	}
	if err := check(*address, *timeout); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
}

// variable is the name of the setting of a service's metrics address, as libs/telemetry reads it.
func variable(service string) string {
	if service == "" || service == "tidegate" {
		return "TIDEGATE_METRICS_LISTEN"
	}
	return "TIDEGATE_" + strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_METRICS_LISTEN"
}

// target is the address to ask for a listen address: one that means every address is asked on loopback.
func target(listen string) (string, error) {
	if listen == "" {
		listen = "127.0.0.1:9090"
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("the metrics address %q is no host:port: %w", listen, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// check returns nil when the service is ready, else why it is not, in one line.
func check(listen string, timeout time.Duration) error {
	addr, err := target(listen)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return fmt.Errorf("the service does not answer: %w", err)
	}
	defer conn.Close() //nolint:errcheck // everything was read
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET /readyz HTTP/1.0\r\nHost: %s\r\n\r\n", addr); err != nil {
		return fmt.Errorf("ask %s: %w", addr, err)
	}
	r := bufio.NewReader(io.LimitReader(conn, maxBody))
	text := textproto.NewReader(r)
	status, err := text.ReadLine()
	if err == nil {
		_, err = text.ReadMIMEHeader()
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(r)
	}
	if err != nil {
		return fmt.Errorf("the answer of %s cannot be read: %w", addr, err)
	}
	proto, code, _ := strings.Cut(status, " ")
	switch {
	case !strings.HasPrefix(proto, "HTTP/1."):
		return fmt.Errorf("%s does not speak HTTP", addr)
	case strings.HasPrefix(code, "200"):
		return nil
	}
	reasons := strings.FieldsFunc(string(body), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(reasons) == 0 {
		reasons = []string{"/readyz of " + addr + " answers " + code}
	}
	return errors.New(strings.Join(reasons, "; "))
}
