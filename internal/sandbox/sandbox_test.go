package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leafmill/leafmill/events"
)

var parsers = map[string]Parser{
	"upper": func(args []string, in io.Reader, out io.Writer) error {
		b, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(out, strings.ToUpper(string(b)), args)
		return err
	},
	"refuse": func([]string, io.Reader, io.Writer) error { return errors.New("not a fish") },
	"panic":  func([]string, io.Reader, io.Writer) error { panic("boom") },
	"recurse": func([]string, io.Reader, io.Writer) error {
		var f func(int) int
		f = func(n int) int { return f(n+1) + 1 }
		return fmt.Errorf("%d", f(0))
	},
	"hoard": func([]string, io.Reader, io.Writer) error {
		var kept [][]byte
		for range 10_000 {
			kept = append(kept, bytes.Repeat([]byte("x"), mib))
		}
		return fmt.Errorf("got away with %d", len(kept))
	},
	"spin": func([]string, io.Reader, io.Writer) error {
		for {
		}
	},
}

func TestMain(m *testing.M) {
	Main(parsers)
	if dir := os.Getenv("SANDBOX_TEST_VICTIM"); dir != "" {
		victim(dir)
	}
	os.Exit(m.Run())
}

// victim is a whole program using the package, for the test that kills it.
func victim(dir string) {
	s, err := New(dir)
	if err != nil {
		panic(err)
	}
	w, err := s.Work()
	if err != nil {
		panic(err)
	}
	_, err = w.Run(context.Background(), Command{Tool: "sh", Args: []string{"-c", "echo $$; exec sleep 1000"}, Stdout: os.Stdout})
	panic(err)
}

func work(t *testing.T) *Work {
	t.Helper()
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Work()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(w.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the work directory is still there: %v", err)
		}
	})
	return w
}

func sh(script string) Command { return Command{Tool: "sh", Args: []string{"-c", script}} }

func TestChildIsConfined(t *testing.T) {
	t.Setenv("LEAFMILL_API_KEYS", "secret")
	w := work(t)
	var out bytes.Buffer
	c := sh(`env; pwd; cat /proc/self/limits; grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj; echo x > made`)
	c.Stdout, c.Env = &out, []string{"OMP_THREAD_LIMIT=1"}
	c.Limits = Limits{Time: 7 * time.Second, Memory: 300 * mib, File: 5 * mib}
	if _, err := w.Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"TMPDIR=" + w.dir, "OMP_THREAD_LIMIT=1", "LC_ALL=C.UTF-8", "NoNewPrivs: 1", " 1000",
		"Max cpu time 7 8 seconds", "Max file size 5242880 5242880 bytes", "Max core file size 0 0 bytes",
		"Max address space 314572800 314572800 bytes", "Max open files 256 256 files",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("the child sees this process's environment")
	}
	if _, err := os.Stat(w.Path("made")); err != nil {
		t.Errorf("a relative path does not lie in the work directory: %v", err)
	}
}

func TestParser(t *testing.T) {
	w := work(t)
	var out bytes.Buffer
	_, err := w.Run(t.Context(), Command{Parser: "upper", Args: []string{"a", "b"}, Stdin: strings.NewReader("grüße "), Stdout: &out})
	if err != nil || out.String() != "GRÜSSE [a b]" && out.String() != "GRÜßE [a b]" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestFailures(t *testing.T) {
	second := Limits{Time: time.Second}
	for _, test := range []struct {
		name    string
		command Command
		limits  Limits
		class   events.Class
	}{
		{"too long on the clock", sh("sleep 1000"), Limits{Time: 50 * time.Millisecond}, events.Timeout},
		{"ignores being asked to stop", sh("trap '' TERM INT HUP; sleep 1000; sleep 1000"), Limits{Time: 50 * time.Millisecond}, events.Timeout},
		{"CPU of a tool", sh("while :; do :; done"), Limits{Time: time.Minute, CPU: time.Second}, events.Limit},
		{"CPU of a parser", Command{Parser: "spin"}, Limits{Time: time.Minute, CPU: time.Second}, events.Limit},
		{"output", sh("yes"), Limits{Output: mib}, events.Limit},
		{"output at once", sh("head -c 2000000 /dev/zero"), Limits{Output: mib}, events.Limit},
		{"file size", sh("exec head -c 2000000 /dev/zero > big"), Limits{File: mib}, events.Limit},
		{"memory of a tool", sh("exec sort -S 900M --parallel=1 /dev/zero"), Limits{Memory: 200 * mib}, events.Limit},
		{"memory of a parser", Command{Parser: "hoard"}, Limits{}, events.Limit},
		{"stack of a parser", Command{Parser: "recurse"}, Limits{}, events.Limit},
		{"crash", sh("kill -SEGV $$"), second, events.Corrupt},
		{"killed from outside", sh("kill -KILL $$"), second, events.Internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.command.Limits = test.limits
			r, err := work(t).Run(t.Context(), test.command)
			if events.ClassOf(err) != test.class || err == nil {
				t.Errorf("got %v (%+v), want class %s", err, r, test.class)
			}
			if f, ok := errors.AsType[*events.Failure](err); !ok || f.Message == "" {
				t.Errorf("%v is not a failure with a sentence", err)
			}
		})
	}
}

func TestExitCodesAreTheCallersToJudge(t *testing.T) {
	w := work(t)
	for _, test := range []struct {
		command Command
		code    int
		stderr  string
	}{
		{sh("yes complaint | head -n 5000 >&2; echo last words >&2; exit 3"), 3, "last words\n"},
		{Command{Parser: "refuse"}, 1, "not a fish\n"},
		{Command{Parser: "panic"}, 2, ""},
	} {
		_, err := w.Run(t.Context(), test.command)
		e, ok := errors.AsType[*ExitError](err)
		if !ok || e.Code != test.code || !strings.HasSuffix(e.Stderr, test.stderr) || len(e.Stderr) > stderrMax+3 {
			t.Errorf("%s: got %v", test.command.name(), err)
		}
	}
}

func TestNothingToRun(t *testing.T) {
	w := work(t)
	if _, err := w.Run(t.Context(), Command{Tool: "no-such-tool"}); !errors.Is(err, ErrNoTool) {
		t.Errorf("got %v, want ErrNoTool", err)
	}
	_, err := w.Run(t.Context(), Command{Parser: "no-such-parser"})
	if _, exit := errors.AsType[*ExitError](err); err == nil || exit {
		t.Errorf("an unknown parser is a fault of ours, not of the document: %v", err)
	}
}

func TestCancelIsNotAFailureOfTheDocument(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := sh("echo; sleep 1000")
	c.Stdout = writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	_, err := work(t).Run(ctx, c)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestGrandchildrenEnd(t *testing.T) {
	for name, script := range map[string]string{
		"when the tool is killed": "sleep 1000 & echo $!; wait",
		"when the tool ends well": "sleep 1000 > /dev/null 2>&1 & echo $!",
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c := sh(script)
			c.Stdout, c.Limits.Time = &out, 200*time.Millisecond
			_, _ = work(t).Run(t.Context(), c)
			waitGone(t, strings.TrimSpace(out.String()))
		})
	}
}

func TestChildrenEndWithAProcessThatIsKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_VICTIM="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitGone(t, strings.TrimSpace(pid))

	// What it left lies there until the next process starts, which keeps its own.
	left, _ := filepath.Glob(filepath.Join(dir, "run-*"))
	if len(left) != 1 {
		t.Fatalf("expected the directory of the killed process, got %v", left)
	}
	for range 2 {
		s, err := New(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if _, err := os.Stat(left[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the killed process is still there: %v", err)
	}
	if kept, _ := filepath.Glob(filepath.Join(dir, "run-*")); len(kept) != 2 {
		t.Errorf("expected those of two living sandboxes, got %v", kept)
	}
}

// waitGone waits until a process has ended.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		ready, err := unix.Poll(poll, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if ready != 1 || err != nil {
			t.Fatalf("process %d is still alive: %v", n, err)
		}
		return
	}
}

func BenchmarkRun(b *testing.B) {
	s, err := New(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	w, err := s.Work()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for b.Loop() {
		if _, err := w.Run(b.Context(), Command{Tool: "true"}); err != nil {
			b.Fatal(err)
		}
	}
}
