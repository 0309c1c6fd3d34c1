package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Credentials are what a client needs to reach a gateway, as kept in a file.
type Credentials struct {
	URL   string `json:"url"`
	CA    string `json:"ca,omitempty"` // PEM; empty: the system's authorities
	Token string `json:"token"`
}

// Options are the client's for these credentials.
func (c Credentials) Options() (Options, error) {
	o := Options{URL: c.URL, Token: c.Token}
	if c.CA != "" {
		pool, err := poolOf([]byte(c.CA))
		if err != nil {
			return o, fmt.Errorf("the authority in the credentials: %w", err)
		}
		o.CA = pool
	}
	return o, nil
}

// SaveCredentials writes the file, readable by its owner alone; a reader sees the old ones or the new ones. Its folder
// is made when missing.
func SaveCredentials(path string, c Credentials) (err error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the credentials: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the credentials: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the credentials: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write the credentials: %w", err)
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// LoadCredentials reads the file. A missing one is fs.ErrNotExist.
func LoadCredentials(path string) (Credentials, error) {
	var c Credentials
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the credentials: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("credentials %s: %w: remove the file and log in again", path, err)
	}
	if c.URL == "" {
		return c, fmt.Errorf("credentials %s name no gateway: remove the file and log in again", path)
	}
	return c, nil
}
