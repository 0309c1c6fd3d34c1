package rpc

import (
	"errors"
	"strings"

	"google.golang.org/grpc/status"
)

// Sentence is what an error of a call says to an operator, without the words that gRPC puts around it.
func Sentence(err error) string {
	text := err.Error()
	var call interface{ GRPCStatus() *status.Status }
	if errors.As(err, &call) {
		text = call.GRPCStatus().Message()
	}
	// The transport's words, of google.golang.org/grpc/internal/transport.
	if _, inner, ok := strings.Cut(text, `connection error: desc = "`); ok {
		text = strings.TrimSuffix(inner, `"`)
	}
	for _, words := range []string{"transport: authentication handshake failed: ", "transport: Error while dialing: ", "error reading server preface: "} {
		text = strings.TrimPrefix(text, words)
	}
	return text
}
