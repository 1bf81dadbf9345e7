package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// ValidateBind refuses to serve the network without protection: an address that is not
// loopback needs API keys, or insecure.
func ValidateBind(addr string, keys []string, insecure bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("gateway: the address %q is not host:port", addr)
	}
	if insecure || loopback(host) || slices.ContainsFunc(keys, func(k string) bool { return k != "" }) {
		return nil
	}
	return fmt.Errorf("gateway: %s can be reached from the network: set LEAFMILL_API_KEYS, listen on 127.0.0.1, or give --insecure", addr)
}

// loopback says whether a host, without port, is this machine's own.
func loopback(host string) bool {
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// access decides who is answered.
//
// With keys, everything needs one but the health probe, the API's description and the
// landing page; readiness and metrics need none when asked from this machine by its own
// name and through no proxy. Keys are no cookies, so no foreign page can use them, and
// Host and Origin do not matter.
//
// Without keys, the Host must be this machine (DNS rebinding), and so must the Origin be
// if there is one (cross-site forms).
type access struct {
	keys     [][sha256.Size]byte
	insecure bool
	hosts    []string
}

func newAccess(c Config) access {
	a := access{insecure: c.Insecure, hosts: c.Hosts}
	for _, k := range c.Keys {
		if k != "" {
			a.keys = append(a.keys, sha256.Sum256([]byte(k)))
		}
	}
	return a
}

// check returns why a request is refused, or nil.
func (a access) check(r *http.Request) error {
	if len(a.keys) == 0 {
		if !a.ours(hostOf(r.Host)) {
			return refuse(http.StatusForbidden, codeForbiddenHost,
				"The server does not answer to this Host name. Call it by localhost, or configure API keys.")
		}
		return a.checkOrigin(r)
	}
	if a.open(r) {
		return nil
	}
	if !a.valid(presented(r)) {
		return refuse(http.StatusUnauthorized, codeUnauthorized,
			"An API key is needed: Authorization: Bearer <key>, or X-API-Key.").with("WWW-Authenticate", `Bearer realm="leafmill"`)
	}
	return nil
}

func (a access) open(r *http.Request) bool {
	switch r.URL.Path {
	case "/healthz", "/openapi.json", "/":
		return r.Method == http.MethodGet || r.Method == http.MethodHead
	case "/readyz", "/metrics":
		return loopback(hostOf(r.RemoteAddr)) && loopback(hostOf(r.Host)) &&
			r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == ""
	}
	return false
}

// valid compares with every key, in a time that tells nothing about them.
func (a access) valid(key string) bool {
	sum, ok := sha256.Sum256([]byte(key)), 0
	for _, k := range a.keys {
		ok |= subtle.ConstantTimeCompare(sum[:], k[:])
	}
	return ok == 1
}

func presented(r *http.Request) string {
	if k := r.Header.Get("X-API-Key"); k != "" {
		return k
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(key)
	}
	return ""
}

func (a access) checkOrigin(r *http.Request) error {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return nil
	}
	u, err := url.Parse(origins[0])
	if len(origins) > 1 || err != nil || (u.Scheme != "http" && u.Scheme != "https") || !a.ours(u.Hostname()) {
		return refuse(http.StatusForbidden, codeForbiddenOrigin, "The request comes from a page of another site.")
	}
	return nil
}

// ours says whether a request without a key may use a host name. On the network
// (insecure), IP addresses and names without a dot pass too: no page of another site can
// have such a name.
func (a access) ours(host string) bool {
	if loopback(host) || slices.ContainsFunc(a.hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	if !a.insecure || host == "" {
		return false
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || !strings.Contains(host, ".")
}

func hostOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if ae, ok := errors.AsType[*net.AddrError](err); ok && ae.Err == "missing port in address" {
		return hostport
	}
	return host
}
