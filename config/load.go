package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
)

const (
	// maxFile bounds config.toml in bytes; ten thousand domains take about 200 KiB.
	maxFile = 4 << 20
	// maxBrackets bounds how deep the file can nest: the TOML parser (v1.6.0)
	// calls itself for each [ and {, and two million of them end the process.
	maxBrackets = 50_000
)

// Load reads and validates the file at path. The error holds [Errors] when the
// file could be read but is wrong. Secret files are not opened: commands that
// need no secret work without them.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	return Parse(data, path)
}

// Parse decodes data over the defaults and validates it. The name is that of
// the file: it begins the error, and relative file names in data resolve
// against its directory.
func Parse(data []byte, name string) (*Config, error) {
	file, err := filepath.Abs(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: longer than %d MiB; is this the right file?", name, maxFile>>20)
	}
	if bytes.Count(data, []byte("["))+bytes.Count(data, []byte("{")) > maxBrackets {
		return nil, fmt.Errorf("%s: more than %d brackets; is this the right file?", name, maxBrackets)
	}
	root, serr := parseTOML(data)
	if serr != nil {
		return nil, fmt.Errorf("%s: %w", name, Errors{serr})
	}
	var r report
	c := Default()
	c.file = file
	given := decode(root, &c, &r)
	validate(&c, given, &r)
	c.place()
	if len(r.errs) > 0 {
		c.label(r.errs)
		return nil, fmt.Errorf("%s: %w", name, r.errs)
	}
	return &c, nil
}

// parseTOML knows nothing of keys; it returns only syntax errors.
func parseTOML(data []byte) (map[string]any, *Error) {
	root := map[string]any{}
	_, err := toml.Decode(string(data), &root)
	if err == nil {
		return root, nil
	}
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return nil, &Error{Line: 1, Msg: err.Error()}
	}
	return nil, &Error{Line: max(pe.Position.Line, 1), Msg: syntaxMessage(pe, data)}
}

// syntaxMessage passes the decoder's message on, unless it might quote a part
// of a secret: `password = hunter2` gives `expected value but found "hunter"`.
func syntaxMessage(pe toml.ParseError, data []byte) string {
	if rest, ok := strings.CutPrefix(pe.Message, "Key '"); ok { // defined twice: quotes keys only
		return "key '" + printable(strings.TrimSuffix(rest, "."))
	}
	lines := strings.Split(string(data), "\n")
	line := ""
	if n := pe.Position.Line; n >= 1 && n <= len(lines) {
		line = lines[n-1]
	}
	last := pe.LastKey[strings.LastIndex(pe.LastKey, ".")+1:]
	for _, name := range secretNames {
		// Any line that mentions the name counts, and so does a value that
		// began on an earlier line; this may hide too much, never too little.
		if strings.Contains(line, name) || strings.HasPrefix(last, name) {
			return "not valid TOML near " + name + "; write the value in double quotes (text not shown)"
		}
	}
	msg := printable(strings.TrimSuffix(pe.Message, ".")) // it may quote a line break
	if strings.HasPrefix(msg, "expected value but found") {
		msg += "; write text in double quotes"
	}
	return msg
}

// place finishes what only makes sense for the file as a whole: relative file
// names, and what secrets and tables need to name themselves in errors.
func (c *Config) place() {
	dir := filepath.Dir(c.file)
	if p := c.Registry.Path; p != "" && !filepath.IsAbs(p) {
		c.Registry.Path = filepath.Join(dir, p)
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		s.origin = origin{key: serverKey(i), dir: dir, server: c.serverLabel(i)}
		for j, d := range s.Domains {
			s.Domains[j] = strings.ToLower(d)
		}
	}
	c.API.origin = origin{key: "api", dir: dir}
	c.Notify.origin = origin{key: "notify", dir: dir}
	if p := c.Spool.Path; p != "" && !filepath.IsAbs(p) {
		c.Spool.Path = filepath.Join(dir, p)
	}
	for i := range c.Webhooks {
		c.Webhooks[i].origin = origin{key: indexed("webhook", i), dir: dir}
	}
	for key, s := range c.secrets() {
		if s.IsSet() {
			s.origin = origin{key: key, dir: dir, server: c.labelOf(key)}
		}
	}
}

func serverKey(i int) string { return indexed("server", i) }

// indexed names a table of a list.
func indexed(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// origin says where in which file a setting stands.
type origin struct {
	key    string // such as server[0].auth.password
	server string // its server's name, if there are several
	dir    string // of the file
}

// resolve finds the file that a setting names: a relative name is looked for
// among the systemd credentials first (systemd.exec(5), LoadCredential=), then
// beside the configuration file.
func (o origin) resolve(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return filepath.Join(o.dir, name)
}

func (o origin) error(suffix, msg string, err error) *Error {
	return &Error{Key: o.key + suffix, Server: o.server, Msg: msg, Err: err}
}
