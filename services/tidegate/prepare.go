package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// Folders below prepareCmd.Dir, each a volume of its own, so that a container sees its own secrets only. Each service
// has one of its name besides.
const (
	authorityDir = "authority" // keys of the certificate authority and of tokens: mounted nowhere else
	operatorDir  = "operator"  // credentials of the command line
	operatorFile = "credentials.json"
	operatorFor  = 30 * 24 * time.Hour
	secretBytes  = 24
)

// prepareCmd runs before the services of a machine, at each start.
type prepareCmd struct {
	Dir      string   `help:"folder with a volume for each part: authority, operator, and one for each service" default:"/tidegate" type:"path"`
	Hosts    []string `name:"host" help:"host name or address that the services are reached by; repeat or separate by commas"`
	Owner    int      `help:"user and group id of the services; -1 leaves the owner" default:"10001"`
	Gateway  string   `help:"address of the gateway, for the command line's credentials" default:"https://gateway:8080"`
	Secrets  []string `name:"secret" help:"FOLDER/FILE of a password to make; repeat or separate by commas" placeholder:"FILE"`
	Data     []string `help:"folder that a service writes to; it is made the owner's" placeholder:"FOLDER"`
	Renew    bool     `help:"make the services' certificates anew though they are valid"`
	BPFFS    string   `name:"bpffs" help:"BPF file system in which services pin the XDP program; empty = none" default:""`
	NATSDir  string   `name:"nats-dir" help:"the NATS server's folder as that server sees it" default:"/etc/tidegate/certs"`
	NATSData string   `name:"nats-store" help:"folder of that server's messages, as it sees it" default:"/var/lib/nats"`
}

// Run keeps what is there, except that certificates near their end are made anew and the command line gets a fresh token.
func (c *prepareCmd) Run(t *terminal) error {
	authority := filepath.Join(c.Dir, authorityDir)
	made, err := pki.Ensure(authority, c.Hosts, c.Renew)
	if err != nil {
		return config.Usagef("certificates: %w", err)
	}
	if _, err := token.Init(authority); err != nil {
		return err
	}
	if err := c.spread(authority); err != nil {
		return err
	}
	if err := c.operator(authority); err != nil {
		return err
	}
	for _, name := range c.Secrets {
		if err := c.secret(filepath.Join(c.Dir, name)); err != nil {
			return err
		}
	}
	for _, name := range c.Data {
		if err := c.folder(filepath.Join(c.Dir, name), 0o700); err != nil {
			return err
		}
	}
	if c.BPFFS != "" {
		if err := c.pins(); err != nil {
			return err
		}
	}
	fresh := 0
	for _, m := range made {
		if m.New {
			fresh++
		}
	}
	_, err = fmt.Fprintf(t.out, "prepared %s: %d of %d certificates are new\n", c.Dir, fresh, len(made))
	return err
}

// spread copies each service's certificate into its folder, and what NATS and the gateway need besides.
func (c *prepareCmd) spread(authority string) error {
	for _, name := range pki.Services {
		dir := filepath.Join(c.Dir, name)
		if err := c.folder(dir, 0o700); err != nil {
			return err
		}
		from, to := pki.FilesOf(authority, name), pki.FilesOf(dir, name)
		copies := [][2]string{{from.CA, to.CA}, {from.Cert, to.Cert}, {from.Key, to.Key}}
		if name == pki.Gateway {
			copies = append(copies, [2]string{filepath.Join(authority, token.JWKSFile), filepath.Join(dir, token.JWKSFile)})
		}
		for _, f := range copies {
			b, err := os.ReadFile(f[0])
			if err != nil {
				return fmt.Errorf("copy for %s: %w", name, err)
			}
			if err := c.place(f[1], b, 0o400); err != nil {
				return err
			}
		}
	}
	// For the health check of the NATS server's container.
	conf := bus.ServerConf(c.NATSDir, c.NATSData) + "http: 127.0.0.1:8222\n"
	return c.place(filepath.Join(c.Dir, pki.NATS, "nats.conf"), []byte(conf), 0o400)
}

// operator writes credentials for the command line, good for 30 days from this start.
func (c *prepareCmd) operator(authority string) error {
	dir := filepath.Join(c.Dir, operatorDir)
	if err := c.folder(dir, 0o700); err != nil {
		return err
	}
	ca, err := os.ReadFile(pki.FilesOf(authority, pki.Gateway).CA)
	if err != nil {
		return fmt.Errorf("credentials of the command line: %w", err)
	}
	signed, err := token.Issue(authority, token.Claims{Subject: "operator", Role: "admin", For: operatorFor})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, operatorFile)
	if err := client.SaveCredentials(file, client.Credentials{URL: c.Gateway, CA: string(ca), Token: signed}); err != nil {
		return err
	}
	return c.own(file)
}

// secret makes a random password unless the file is there. Its folder is mounted only where it is used, by servers that
// read it as a user of their own: hence readable.
func (c *prepareCmd) secret(file string) error {
	b, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	switch {
	case err == nil && len(bytes.TrimSpace(b)) == 0:
		return config.Usagef("the secret %s is empty: write a password into it, or remove it so that one is made", file)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the secret: %w", err)
	}
	if err := c.folder(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	random := make([]byte, secretBytes)
	if _, err := rand.Read(random); err != nil {
		return fmt.Errorf("make the secret %s: %w", file, err)
	}
	return c.place(file, fmt.Appendf(nil, "%x", random), 0o444)
}

// pins makes the folder of the pins writable for the services, which are not root.
func (c *prepareCmd) pins() error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.BPFFS, &st); err != nil {
		return config.Usagef("--bpffs %s: %w", c.BPFFS, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return config.Usagef("--bpffs %s is not a BPF file system: mount one on the machine (mount -t bpf bpf /sys/fs/bpf) and give it to this container", c.BPFFS)
	}
	// systemd mounts it for root alone; the services have to get through to their folder.
	if st, err := os.Stat(c.BPFFS); err == nil && st.Mode().Perm()&0o001 == 0 {
		if err := os.Chmod(c.BPFFS, st.Mode().Perm()|0o011); err != nil {
			return fmt.Errorf("let the services through %s: %w", c.BPFFS, err)
		}
	}
	dir := filepath.Join(c.BPFFS, "tidegate")
	if err := c.folder(dir, 0o700); err != nil {
		return err
	}
	// What root has pinned before becomes the services': they take it over without a gap.
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("hand the pins over: %w", err)
		}
		return c.own(path)
	})
}

func (c *prepareCmd) folder(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if err := os.Chmod(dir, mode); err != nil { // a volume's folder is there already
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return c.own(dir)
}

func (c *prepareCmd) own(path string) error {
	if c.Owner < 0 {
		return nil
	}
	if err := os.Chown(path, c.Owner, c.Owner); err != nil {
		return config.Usagef("%w: run as root, or with --owner=-1", err)
	}
	return nil
}

// place puts content into a file in one step, so that a reader never sees half of it, and leaves alone what is equal.
func (c *prepareCmd) place(file string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, content) { //nolint:gosec // made by an earlier start
		return c.own(file)
	}
	part := file + ".part"
	_ = os.Remove(part) // of a start that was killed; read-only, it could not be written over
	if err := os.WriteFile(part, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := c.own(part); err != nil {
		return err
	}
	if err := os.Rename(part, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
