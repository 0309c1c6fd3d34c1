package bus

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/pki"
)

// ServerConf is the configuration of a separate nats-server: mutual TLS with the certificates that pki.Ensure makes,
// the permissions of each identity, JetStream. certs is the folder and store the message store as the server sees
// them; both must be absolute, because nats-server reads relative paths from where it was started. Address and port
// are the server's defaults; its flags -a and -p win.
func ServerConf(certs, store string) string {
	f := pki.FilesOf(certs, pki.NATS)
	var b strings.Builder
	b.WriteString("# Made by tidegate certs, and made again by it: changes belong into a file that includes this one.\n")
	b.WriteString("server_name: tidegate\n")
	b.WriteString("max_payload: 1MB\n")
	fmt.Fprintf(&b, "jetstream { store_dir: %s, max_file_store: %d }\n", strconv.Quote(store), int64(maxStore))
	fmt.Fprintf(&b, "tls {\n  ca_file: %s\n  cert_file: %s\n  key_file: %s\n", strconv.Quote(f.CA), strconv.Quote(f.Cert), strconv.Quote(f.Key))
	b.WriteString("  verify_and_map: true\n  timeout: 5\n}\n")
	b.WriteString("authorization {\n  users = [\n")
	table := Permissions()
	names := make([]string, 0, len(table))
	for name := range table {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p := table[name]
		// By subject: the server also tries a certificate's DNS names, and a host may have any name.
		fmt.Fprintf(&b, "    { user: %s, permissions: {\n", strconv.Quote("CN="+name))
		fmt.Fprintf(&b, "      publish: { allow: %s", list(p.Publish))
		if len(p.Deny) > 0 {
			fmt.Fprintf(&b, ", deny: %s", list(p.Deny))
		}
		fmt.Fprintf(&b, " }\n      subscribe: { allow: %s }\n", list(p.Subscribe))
		if p.Answers {
			b.WriteString("      allow_responses: true\n")
		}
		b.WriteString("    } }\n")
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}

// confPath matches what ServerConf writes of its two folders.
var confPath = regexp.MustCompile(`(?m)^(?:jetstream \{ (store_dir)|  (ca_file)): ("(?:[^"\\]|\\.)*")`)

// ServerConfPaths gives the folders that a configuration of ServerConf's names, "" what it does not.
func ServerConfPaths(conf string) (certs, store string) {
	for _, m := range confPath.FindAllStringSubmatch(conf, -1) {
		path, err := strconv.Unquote(m[3])
		switch {
		case err != nil:
		case m[1] != "":
			store = path
		default:
			certs = filepath.Dir(path)
		}
	}
	return certs, store
}

func list(subjects []string) string {
	quoted := make([]string, len(subjects))
	for i, s := range subjects {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
