package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/leafmill/leafmill/events"
)

// Limits bound one run. A zero field takes the default.
type Limits struct {
	Time   time.Duration // on the clock; default 60 s
	CPU    time.Duration // of all threads together, rounded up to seconds; default Time
	Memory int64         // bytes of address space; default 1 GiB, for a parser 2 GiB (Go reserves more than it uses)
	Output int64         // bytes of standard output; default 8 MiB
	File   int64         // bytes of any one file it writes; default 64 MiB
}

const (
	mib       = 1 << 20
	stderrMax = 4 << 10
	// grace is how long a killed or finished child's pipes may stay open, held by a process
	// that left its group.
	grace = 2 * time.Second
)

// Command is one program or parser to run.
type Command struct {
	Tool   string // a program, looked up in PATH
	Parser string // or a parser given to Main
	Args   []string
	Env    []string  // KEY=value, added to PATH, HOME, TMPDIR and a UTF-8 locale
	Stdin  io.Reader // nil is empty; an *os.File is handed over as it is
	Stdout io.Writer // nil is discarded
	Limits Limits
}

func (c Command) name() string {
	if c.Tool != "" {
		return c.Tool
	}
	return c.Parser + " parser"
}

// Result says what a run used and what it complained about.
type Result struct {
	Stderr string        // at most 4 KiB, the beginning and the end
	CPU    time.Duration // user and system
	MaxRSS int64         // bytes
}

// ExitError is a run that ended by itself with an exit code other than 0. What that means
// depends on the tool: the caller knows.
type ExitError struct {
	Tool   string
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.Tool, e.Code, lastLine(e.Stderr))
}

var (
	errTime   = errors.New("time limit reached")
	errOutput = errors.New("output limit reached")
)

// Run runs the command in the work's directory and waits for it. It fails with
//   - ErrNoTool when the program is not installed;
//   - the context's error when that ended;
//   - a Failure of class Timeout, of class Limit (memory, CPU, output, file size), of class
//     Corrupt when the tool crashed on its input, or Internal when something else killed it;
//   - an *ExitError when it ended with another exit code than 0;
//   - any other error when it could not be started or Stdin or Stdout failed.
func (w *Work) Run(ctx context.Context, c Command) (Result, error) {
	l := c.Limits.withDefaults(c.Tool == "")
	o := order{Parser: c.Parser, Args: c.Args, Memory: uint64(l.Memory), File: uint64(l.File),
		CPU: uint64((l.CPU + time.Second - 1) / time.Second)}
	if c.Tool != "" {
		path, err := exec.LookPath(c.Tool)
		if err != nil {
			return Result{}, fmt.Errorf("%s: %w", c.Tool, ErrNoTool)
		}
		if o.Path, err = filepath.Abs(path); err != nil {
			return Result{}, err
		}
	}
	arg, err := json.Marshal(o)
	if err != nil {
		return Result{}, err
	}

	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	run, stop := context.WithTimeoutCause(run, l.Time, errTime)
	defer stop()
	stderr := &edges{max: stderrMax}
	cmd := exec.CommandContext(run, "/proc/self/exe") // the running binary, even when its file was replaced
	cmd.Args = []string{shimName, string(arg)}
	cmd.Dir = w.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "TMPDIR=" + w.dir, "LC_ALL=C.UTF-8",
		fmt.Sprintf("GOMEMLIMIT=%d", l.Memory/3)}, c.Env...)
	cmd.Stdin = c.Stdin
	cmd.Stdout = &capped{w: c.Stdout, left: l.Output, full: func() { cancel(errOutput) }}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = grace

	// Pdeathsig fires when the thread that started the child ends, not the process. This
	// thread stays ours, and so alive, until the child has ended (golang.org/issue/27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return Result{}, fmt.Errorf("sandbox: start %s: %w", c.name(), err)
	}
	err = cmd.Wait()
	_ = killGroup(cmd.Process.Pid) // what the tool started and left behind

	r := Result{Stderr: stderr.String()}
	if s := cmd.ProcessState; s != nil {
		r.CPU = s.UserTime() + s.SystemTime()
		if u, ok := s.SysUsage().(*syscall.Rusage); ok {
			r.MaxRSS = u.Maxrss * 1024
		}
	}
	switch cause := context.Cause(run); {
	case err == nil && !errors.Is(cause, errOutput):
		return r, nil
	case ctx.Err() != nil:
		return r, ctx.Err()
	case errors.Is(cause, errTime):
		return r, events.Fail(events.Timeout, "%s took longer than %s on this document.", c.name(), l.Time)
	case errors.Is(cause, errOutput):
		return r, events.Fail(events.Limit, "%s wrote more than %d MB on this document.", c.name(), l.Output/mib)
	}
	return r, classify(c, l, r, cmd.ProcessState, err)
}

func (l Limits) withDefaults(parser bool) Limits {
	if l.Time <= 0 {
		l.Time = time.Minute
	}
	if l.CPU <= 0 {
		l.CPU = l.Time
	}
	if l.Memory <= 0 {
		l.Memory = 1024 * mib
		if parser {
			l.Memory = 2048 * mib
		}
	}
	if l.Output <= 0 {
		l.Output = 8 * mib
	}
	if l.File <= 0 {
		l.File = 64 * mib
	}
	return l
}

// classify explains a child that ended badly by itself.
func classify(c Command, l Limits, r Result, s *os.ProcessState, err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return fmt.Errorf("sandbox: %s: %w", c.name(), err)
	}
	if outOfMemory(r, l) {
		return events.Fail(events.Limit, "%s needs more than %d MB of memory for this document.", c.name(), l.Memory/mib).Because(err)
	}
	status, _ := s.Sys().(syscall.WaitStatus)
	if !status.Signaled() {
		if s.ExitCode() == exitNoExec && strings.HasPrefix(r.Stderr, "sandbox: ") {
			return errors.New(lastLine(r.Stderr)) // the shim's own words: nothing has run
		}
		return &ExitError{Tool: c.name(), Code: s.ExitCode(), Stderr: r.Stderr}
	}
	switch sig := status.Signal(); {
	case sig == syscall.SIGXCPU, sig == syscall.SIGKILL && r.CPU >= l.CPU:
		return events.Fail(events.Limit, "%s used more than %s of CPU time on this document.", c.name(), l.CPU).Because(err)
	case sig == syscall.SIGXFSZ:
		return events.Fail(events.Limit, "%s wrote a file of more than %d MB for this document.", c.name(), l.File/mib).Because(err)
	case sig == syscall.SIGKILL, sig == syscall.SIGTERM, sig == syscall.SIGINT:
		return events.Fail(events.Internal, "%s was killed from outside, perhaps because the machine is out of memory.", c.name()).Because(err)
	default:
		return events.Fail(events.Corrupt, "%s crashed on this document (%s).", c.name(), sig).Because(err)
	}
}

// outOfMemory guesses whether a failed child met its address space limit. The kernel tells
// nobody: the allocation fails and the tool says so, each in its words, or does not and
// crashes close to the limit.
func outOfMemory(r Result, l Limits) bool {
	said := strings.ToLower(r.Stderr)
	for _, words := range []string{"out of memory", "memory exhausted", "bad_alloc", "cannot allocate memory", "failed to map segment", "failed to allocate", "stack exceeds"} {
		if strings.Contains(said, words) {
			return true
		}
	}
	return r.MaxRSS >= l.Memory/10*9
}

func killGroup(pid int) error {
	err := syscall.Kill(-pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// capped passes at most left bytes on and calls full at the first beyond.
type capped struct {
	w    io.Writer
	left int64
	full func()
}

func (c *capped) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		c.full()
		return 0, errOutput
	}
	c.left -= int64(len(p))
	if c.w == nil {
		return len(p), nil
	}
	return c.w.Write(p)
}

// edges keeps the first and the last bytes, half of max each: a tool says last why it
// gave up, a crashed Go program says so first.
type edges struct {
	max        int
	head, tail []byte
}

func (e *edges) Write(p []byte) (int, error) {
	n := min(len(p), e.max/2-len(e.head))
	e.head = append(e.head, p[:n]...)
	rest := p[n:]
	e.tail = append(e.tail, rest[max(0, len(rest)-e.max/2):]...)
	if over := len(e.tail) - e.max/2; over > 0 {
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	return len(p), nil
}

func (e *edges) String() string {
	return strings.ToValidUTF8(string(e.head)+string(e.tail), "\uFFFD")
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
