package sqlstore

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// password is where the database's password comes from: a file, or else the URL.
type password struct {
	file  string
	fixed string
}

// read returns the password of this moment. No password at all is an empty one.
func (p password) read() (string, error) {
	if p.file == "" {
		return p.fixed, nil
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return "", fmt.Errorf("read the database password (DATABASE_PASSWORD_FILE): %w", err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return "", fmt.Errorf("the file of the database password (DATABASE_PASSWORD_FILE) %s is empty: write the password into it", p.file)
	}
	return s, nil
}

// inURL returns raw with the file's password in it, and the password for hide.
func (p password) inURL(raw string) (dsn, secret string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", errors.New("DATABASE_URL is not a valid URL: escape special characters of the password as %XX")
	}
	if p.file == "" {
		secret, _ = u.User.Password()
		return raw, secret, nil
	}
	if secret, err = p.read(); err != nil {
		return "", "", err
	}
	if u.User.Username() == "" {
		return "", "", errors.New("DATABASE_URL names no user, whose password DATABASE_PASSWORD_FILE would be: write it as " + example("postgresql"))
	}
	u.User = url.UserPassword(u.User.Username(), secret)
	return u.String(), secret, nil
}

// hidden is an error with another text.
type hidden struct {
	text string
	err  error
}

// Error implements error.
func (h hidden) Error() string { return h.text }

// Unwrap gives the error, for errors.As; its own text is not for people.
func (h hidden) Unwrap() error { return h.err }

// hide takes a password out of an error's text.
func hide(err error, secret string) error {
	if err == nil || secret == "" {
		return err
	}
	text := err.Error()
	clean := strings.ReplaceAll(strings.ReplaceAll(text, secret, "***"), url.QueryEscape(secret), "***")
	if clean == text {
		return err
	}
	return hidden{clean, err}
}
