package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/services/gateway"
)

// TestLocalAccessComesBack: a demo beside a run leaves its own credentials in the same file and takes them away at its end.
func TestLocalAccessComesBack(t *testing.T) {
	dir := t.TempDir()
	if _, err := token.Init(dir); err != nil {
		t.Fatal(err)
	}
	cfg := stackConfig{gateway: gateway.DefaultConfig(), local: filepath.Join(dir, "local.json")}
	cfg.gateway.Tokens.JWKSFile = filepath.Join(dir, token.JWKSFile)
	l, err := newLocalAccess(telemetry.Discard("tidegate"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.look = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	if err := os.Remove(cfg.local); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := client.LoadCredentials(cfg.local); err == nil && c.Token != "" {
			break
		} else if time.Now().After(end) {
			t.Fatal("the credentials stay away")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(cfg.local); !os.IsNotExist(err) {
		t.Errorf("the credentials stay at the end: %v", err)
	}
}
