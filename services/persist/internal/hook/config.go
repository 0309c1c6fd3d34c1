package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
)

// Config says who is told of events. The tags are for kong; DefaultConfig has the same defaults.
//
// A hook is known by its kind and its place in the list (webhook-1, script-2): the bus keeps by that name how far it
// has got.
type Config struct {
	Webhooks    []string      `name:"webhook" placeholder:"URL" env:"TIDEGATE_PERSIST_HOOK_WEBHOOK" help:"https URL that events are posted to, signed; up to 4, add new ones at the end."`
	Secrets     []string      `name:"webhook-secret-file" placeholder:"FILE" env:"TIDEGATE_PERSIST_HOOK_WEBHOOK_SECRET_FILE" help:"File with the secret of the webhook at the same place: lines of whsec_ and 24 to 64 bytes in base64."`
	WebhookCA   string        `name:"webhook-ca" placeholder:"FILE" env:"TIDEGATE_PERSIST_HOOK_WEBHOOK_CA" help:"PEM file of the authority of the webhooks' servers; empty: the system's."`
	AllowHTTP   bool          `name:"webhook-allow-http" env:"TIDEGATE_PERSIST_HOOK_WEBHOOK_ALLOW_HTTP" help:"Take http URLs too: events are signed, but everybody on the way can read them. On loopback they are always taken."`
	HTTPTimeout time.Duration `name:"webhook-timeout" env:"TIDEGATE_PERSIST_HOOK_WEBHOOK_TIMEOUT" default:"10s" help:"Longest time of one attempt, 100ms to 5m."`

	Scripts       []string      `name:"script" placeholder:"FILE" env:"TIDEGATE_PERSIST_HOOK_SCRIPT" help:"Program that is run for each event, with the event as JSON on standard input; absolute path, up to 4, add new ones at the end."`
	ScriptTimeout time.Duration `name:"script-timeout" env:"TIDEGATE_PERSIST_HOOK_SCRIPT_TIMEOUT" default:"10s" help:"Longest time of one run, 100ms to 5m; then the program and its children are killed."`

	Events []string `name:"events" env:"TIDEGATE_PERSIST_HOOK_EVENTS" default:"attack.started,attack.ended,rule.applied,rule.refused,rule.expired,rule.revoked,audit.done" help:"Types of events for webhooks and scripts; attack.* are all of attacks."`

	EVEFile  string   `name:"eve-file" placeholder:"FILE" env:"TIDEGATE_PERSIST_HOOK_EVE_FILE" help:"File that EVE lines (JSON as Suricata writes it) are appended to; it may be moved away, SIGHUP opens it anew."`
	EVENATS  bool     `name:"eve-nats" env:"TIDEGATE_PERSIST_HOOK_EVE_NATS" help:"Publish EVE lines on NATS as tg.v1.eve.TYPE, kept in the stream TG_EVE."`
	EVETypes []string `name:"eve-types" env:"TIDEGATE_PERSIST_HOOK_EVE_TYPES" default:"alert,flow,drop" help:"Which EVE lines: alert, flow, drop."`
}

// DefaultConfig has no hooks.
func DefaultConfig() Config {
	return Config{
		HTTPTimeout: 10 * time.Second, ScriptTimeout: 10 * time.Second, EVETypes: []string{typeAlert, typeFlow, typeDrop},
		Events: []string{"attack.started", "attack.ended", "rule.applied", "rule.refused", "rule.expired", "rule.revoked", "audit.done"},
	}
}

const (
	minLimit = 100 * time.Millisecond
	maxLimit = 5 * time.Minute
)

// Validate reports the first setting that cannot work. It looks at files and opens no connection.
func (c *Config) Validate() error {
	if len(c.Webhooks) > bus.HookPlaces || len(c.Scripts) > bus.HookPlaces {
		return fmt.Errorf("%d webhooks and %d scripts: there may be %d of each", len(c.Webhooks), len(c.Scripts), bus.HookPlaces)
	}
	if len(c.Webhooks) != len(c.Secrets) {
		return fmt.Errorf("%d webhooks and %d secrets: each --hook-webhook needs its --hook-webhook-secret-file, in the same order (make one: echo whsec_$(openssl rand -base64 32) > FILE)", len(c.Webhooks), len(c.Secrets))
	}
	for i, raw := range c.Webhooks {
		if err := c.checkURL(raw); err != nil {
			return fmt.Errorf("webhook %d: %w", i+1, err)
		}
		if _, err := readSecrets(c.Secrets[i]); err != nil {
			return fmt.Errorf("webhook %d: %w", i+1, err)
		}
	}
	if c.WebhookCA != "" {
		if _, err := readPool(c.WebhookCA); err != nil {
			return err
		}
	}
	for i, path := range c.Scripts {
		if err := checkScript(path); err != nil {
			return fmt.Errorf("script %d: %w", i+1, err)
		}
	}
	if len(c.Webhooks) > 0 && (c.HTTPTimeout < minLimit || c.HTTPTimeout > maxLimit) {
		return fmt.Errorf("webhook timeout %s: give %s to %s", c.HTTPTimeout, minLimit, maxLimit)
	}
	if len(c.Scripts) > 0 && (c.ScriptTimeout < minLimit || c.ScriptTimeout > maxLimit) {
		return fmt.Errorf("script timeout %s: give %s to %s", c.ScriptTimeout, minLimit, maxLimit)
	}
	if len(c.Webhooks)+len(c.Scripts) > 0 {
		if _, err := wanted(c.Events); err != nil {
			return err
		}
	}
	if c.EVEFile != "" || c.EVENATS {
		if _, err := eveWanted(c.EVETypes); err != nil {
			return err
		}
	}
	if c.EVEFile != "" {
		return checkEVEFile(c.EVEFile)
	}
	return nil
}

func (c *Config) checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("the URL cannot be read: give https://HOST/PATH") // the parser's words repeat it, password included
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("%q is no URL of a webhook: give https://HOST/PATH", u.Redacted())
	case u.Fragment != "":
		return fmt.Errorf("%q: a fragment (#…) is never sent: leave it out", u.Redacted())
	case u.Scheme == "http" && !c.AllowHTTP && !loopback(u.Hostname()):
		return fmt.Errorf("%q: http is in clear: use https, or say --hook-webhook-allow-http", u.Redacted())
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func checkScript(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q: give an absolute path", path)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", path)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable: chmod +x %s", path, path)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s can be changed by every user of this machine: chmod o-w %s", path, path)
	}
	return nil
}

func checkEVEFile(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("EVE file %q: give an absolute path", path)
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || !dir.IsDir() {
		return fmt.Errorf("EVE file %s: the folder %s does not exist: make it, writable for persist", path, filepath.Dir(path))
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("EVE file %s is there and is not a file", path)
	}
	return nil
}

// types of events.
var types = []string{
	"attack.started", "attack.updated", "attack.ended", "verdict.made",
	"rule.applied", "rule.refused", "rule.first_drop", "rule.hits", "rule.renewed", "rule.expired", "rule.revoked",
	"rule.unchanged", "rule.announced", "rule.withdrawn",
	"audit.requested", "audit.done", "audit.refused", "audit.failed",
}

// wanted is the set of types that a list of names and NAME.* means.
func wanted(names []string) (map[string]bool, error) {
	set := make(map[string]bool)
	for _, n := range names {
		group, all := strings.CutSuffix(n, "*")
		found := false
		for _, t := range types {
			if t == n || all && (group == "" || strings.HasSuffix(group, ".") && strings.HasPrefix(t, group)) {
				set[t], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown type of event %q: use %s, or a group as attack.*", n, strings.Join(types, ", "))
		}
	}
	if len(set) == 0 {
		return nil, errors.New("no type of event is named for the hooks: leave --hook-events out, or name one")
	}
	return set, nil
}

func eveWanted(names []string) (map[string]bool, error) {
	set := make(map[string]bool)
	for _, n := range names {
		if !slices.Contains([]string{typeAlert, typeFlow, typeDrop}, n) {
			return nil, fmt.Errorf("unknown type of EVE line %q: use alert, flow, drop", n)
		}
		set[n] = true
	}
	if len(set) == 0 {
		return nil, errors.New("no type of EVE line is named: leave --hook-eve-types out, or name one")
	}
	return set, nil
}

func place(kind string, i int) string { return kind + "-" + strconv.Itoa(i+1) }
