// Package config knows every setting of Leafmill: its name, bounds and default, once, in
// the table of [Config.settings].
//
// Guarantees:
//   - a setting `embed-timeout` is the flag --embed-timeout, the environment variable
//     LEAFMILL_EMBED_TIMEOUT and the key embed_timeout (or embed: timeout:) of the file;
//     a flag wins over the environment, that over the file, that over the default;
//   - every number has a stated least and greatest value, and all problems of all sources
//     are told at once, each with the name the user wrote;
//   - secrets are no flags (a process list shows those) and are never printed;
//   - a name that does not exist is an error in the file and a warning in the environment,
//     with the nearest name that does.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/leafmill/leafmill/internal/guard"
)

// Config is what Leafmill was told. Make one with [Load].
type Config struct {
	Data      string // folder of everything this process keeps
	HTTP      string // address to listen on
	NATS      string // up: address to listen on; run and tools: URL of the server
	User      string // of the embedded NATS server
	Password  string
	Sync      string // always, interval
	Insecure  bool   // other addresses than loopback without keys and users
	Instance  string // name of this replica
	Grace     time.Duration
	LogLevel  string
	LogFormat string

	URL    string // of the gateway, for the client commands
	APIKey string // that the client commands present

	APIKeys        []string // that the gateway accepts; none: no key is asked for
	Hosts          []string // by which the gateway may be called without keys, beside loopback
	MaxUploadBytes int64
	MinFreeBytes   int64

	StreamMaxBytes int64
	StreamReplicas int
	AckWait        time.Duration
	MaxAge         time.Duration

	OCR      OCR
	MaxPages int

	ChunkTokens  int
	ChunkWorkers int
	Embed        Embed
	ModelDir     string
	IndexWorkers int
}

// OCR is how documents are read.
type OCR struct {
	Workers    int // pages recognised at once; 0: one a core
	Languages  string
	DPI        int
	Timeout    time.Duration // of one page
	MaxPixels  int64
	CacheBytes int64 // each of the cache of originals and that of texts
}

// Embed is where vectors come from.
type Embed struct {
	Provider      string // local, openai, none
	BaseURL       string // of an OpenAI-compatible endpoint, ends in /v1
	APIKey        string
	Model         string
	QueryPrefix   string
	PassagePrefix string
	Floor         float64 // cosine of unrelated texts
	Workers       int     // messages at work at once; 0: what suits the provider

	Timeout            time.Duration
	Retries            int
	BreakerFailures    int
	BreakerOpenTimeout time.Duration
	RetryAfterMax      time.Duration
}

// Providers of vectors.
const (
	ProviderLocal  = "local"
	ProviderOpenAI = "openai"
	ProviderNone   = "none"
)

// When a write is forced to disk.
const (
	SyncAlways   = "always"   // before it is acknowledged: survives a power cut
	SyncInterval = "interval" // within a second: survives kill -9 of the process only
)

// bounds that more than one setting has.
const (
	maxWorkers = 256
	mib        = 1 << 20
	gib        = 1 << 30
	pib        = 1 << 50
)

// settings is the table of everything that can be set. Its order is that of `leafmill
// config` and of the documentation.
func (c *Config) settings() []Setting {
	return []Setting{
		text(&c.Data, "data", "./leafmill-data", "folder of everything this process keeps"),
		text(&c.HTTP, "http", "127.0.0.1:8080", "address of the HTTP interface; port 0 takes a free one"),
		text(&c.NATS, "nats", "127.0.0.1:4222", "NATS server: the address that up listens on, the URL that others connect to"),
		text(&c.User, "nats-user", "", "user that clients of the embedded NATS server must name"),
		secret(text(&c.Password, "nats-password", "", "that user's password")),
		choice(&c.Sync, "sync", "force writes to disk before they are acknowledged, or every second", SyncAlways, SyncInterval),
		boolean(&c.Insecure, "insecure", "listen on other addresses than loopback without keys and users"),
		text(&c.Instance, "instance", "", "name of this replica; empty: host and process"),
		duration(&c.Grace, "grace", 20*time.Second, time.Second, 10*time.Minute, "how long work in hand may take at a stop"),
		choice(&c.LogLevel, "log-level", "least level that is logged", "info", "debug", "warn", "error"),
		choice(&c.LogFormat, "log-format", "how log lines are written", "text", "json"),

		called("server", text(&c.URL, "url", "http://127.0.0.1:8080", "URL of the gateway that client commands talk to")),
		secret(text(&c.APIKey, "api-key", "", "key that client commands present to the gateway")),
		secret(list(&c.APIKeys, "api-keys", "keys that the gateway accepts, with commas between")),
		list(&c.Hosts, "hosts", "further names that the gateway may be called by without a key, with commas between"),
		bytes(&c.MaxUploadBytes, "max-upload-bytes", 100*mib, 1, 16*gib, "largest document"),
		bytes(&c.MinFreeBytes, "min-free-bytes", 512*mib, mib, pib, "room on the disk at which nothing new is taken"),

		bytes(&c.StreamMaxBytes, "stream-max-bytes", 10*gib, 16*mib, pib, "size of the event stream at which nothing new is taken"),
		number(&c.StreamReplicas, "stream-replicas", 1, 1, 5, "copies of the stream in a NATS cluster"),
		duration(&c.AckWait, "ack-wait", 30*time.Second, time.Second, time.Hour, "after how long a crashed worker's message goes to another"),
		duration(&c.MaxAge, "max-age", 24*time.Hour, time.Minute, 30*24*time.Hour, "age at which a message that still fails is given up"),

		number(&c.OCR.Workers, "ocr-workers", 0, 0, maxWorkers, "pages recognised at once; 0: one a core"),
		text(&c.OCR.Languages, "ocr-languages", "eng+deu+spa", "languages of scans that come without one, as tesseract names them"),
		number(&c.OCR.DPI, "ocr-dpi", 200, 72, 600, "resolution at which PDF pages are recognised"),
		duration(&c.OCR.Timeout, "ocr-timeout", time.Minute, time.Second, 4*time.Minute, "for one page, to render and to recognise each"),
		number64(&c.OCR.MaxPixels, "ocr-max-pixels", 50_000_000, 1_000_000, 1_000_000_000, "largest page that is recognised"),
		bytes(&c.OCR.CacheBytes, "ocr-cache-bytes", 2*gib, 16*mib, pib, "disk for originals, and as much for their texts"),
		number(&c.MaxPages, "max-pages", 5000, 1, 100_000, "most pages of a document"),

		number(&c.ChunkTokens, "chunk-tokens", 256, 128, 512, "most tokens of a chunk, with the two that the model adds"),
		number(&c.ChunkWorkers, "chunk-workers", 0, 0, maxWorkers, "messages that the chunk service works on at once; 0: its default"),
		choice(&c.Embed.Provider, "embed-provider", "where vectors come from", ProviderLocal, ProviderOpenAI, ProviderNone),
		text(&c.Embed.BaseURL, "embed-base-url", "", "OpenAI-compatible endpoint, ends in /v1"),
		secret(text(&c.Embed.APIKey, "embed-api-key", "", "its key")),
		text(&c.Embed.Model, "embed-model", "text-embedding-3-small", "name of the model there"),
		text(&c.Embed.QueryPrefix, "embed-query-prefix", "", "put before each query, such as `query: `"),
		text(&c.Embed.PassagePrefix, "embed-passage-prefix", "", "put before each passage, such as `passage: `"),
		decimal(&c.Embed.Floor, "embed-floor", 0, 0, 0.99, "cosine of unrelated texts, 0.75 for multilingual-e5"),
		number(&c.Embed.Workers, "embed-workers", 0, 0, maxWorkers, "messages that the embed service works on at once; 0: its default"),
		duration(&c.Embed.Timeout, "embed-timeout", 10*time.Second, time.Millisecond, guard.MaxTimeout, "for one call"),
		number(&c.Embed.Retries, "embed-retries", 4, 0, guard.MaxRetries, "calls after the first"),
		number(&c.Embed.BreakerFailures, "embed-breaker-failures", 3, 1, guard.MaxBreakerFailures, "failures in a row that open the circuit"),
		duration(&c.Embed.BreakerOpenTimeout, "embed-breaker-open-timeout", 10*time.Second, time.Millisecond, guard.MaxOpenTimeout, "how long the circuit stays open before a trial call"),
		duration(&c.Embed.RetryAfterMax, "embed-retry-after-max", guard.MaxRetryAfter, 0, guard.MaxRetryAfter, "longest Retry-After that is waited for"),
		text(&c.ModelDir, "model-dir", "", "folder of the local model; empty: leafmill/models in the user's cache"),
		number(&c.IndexWorkers, "index-workers", 0, 0, maxWorkers, "messages that the index service works on at once; 0: its default"),
	}
}

// check tells what is wrong with settings that are fine one by one.
func (c *Config) check() (problems []error) {
	problem := func(setting, format string, args ...any) {
		problems = append(problems, fmt.Errorf(EnvName(setting)+": "+format, args...))
	}
	if _, _, err := net.SplitHostPort(c.HTTP); err != nil && c.HTTP != "" {
		problem("http", "%q is no address; write host:port, such as 127.0.0.1:8080", c.HTTP)
	}
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		problem("url", "%q is no URL of a gateway; write http://host:port", c.URL)
	}
	if c.Data == "" {
		problem("data", "a folder is needed")
	}
	if c.User == "" != (c.Password == "") {
		problem("nats-user", "a user needs a password and the other way round; set %s too", EnvName("nats-password"))
	}
	if slices.ContainsFunc(c.APIKeys, func(k string) bool { return len(k) < 16 }) {
		problem("api-keys", "a key has at least 16 characters; `openssl rand -hex 16` makes one")
	}
	if c.Embed.Provider == ProviderOpenAI {
		u, err := url.Parse(c.Embed.BaseURL)
		switch {
		case c.Embed.BaseURL == "":
			problem("embed-base-url", "the provider openai needs it, such as https://api.openai.com/v1")
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
			problem("embed-base-url", "it is no URL; write https://host/v1")
		case !strings.HasSuffix(u.Path, "/v1"):
			problem("embed-base-url", "it must end in /v1")
		}
	}
	return problems
}

// warnings tell of settings that do nothing.
func (c *Config) warnings() (out []string) {
	if c.Embed.Provider != ProviderOpenAI && c.Embed.BaseURL != "" {
		out = append(out, EnvName("embed-base-url")+" does nothing: it is used with "+EnvName("embed-provider")+"=openai only")
	}
	return out
}

// CheckListen refuses what would leave the machine open to the network: HTTP without keys,
// or NATS without users, on another address than loopback. What is not listened on is "".
func (c *Config) CheckListen(httpAddr, natsAddr string) error {
	if c.Insecure {
		return nil
	}
	var problems []error
	if httpAddr != "" && !loopback(httpAddr) && len(c.APIKeys) == 0 {
		problems = append(problems, fmt.Errorf("--http %s can be reached from other machines and no key is asked for: set %s, or say --insecure",
			httpAddr, EnvName("api-keys")))
	}
	if natsAddr != "" && !loopback(natsAddr) && c.User == "" {
		problems = append(problems, fmt.Errorf("--nats %s can be reached from other machines and no user is asked for: set %s and %s, or say --insecure",
			natsAddr, EnvName("nats-user"), EnvName("nats-password")))
	}
	return errors.Join(problems...)
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
