package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Parser is a Go function that reads untrusted bytes, run in a child like a tool: args
// are the command's, in and out its standard input and output.
type Parser func(args []string, in io.Reader, out io.Writer) error

// shimName is the child's argv[0]; the second and last argument is the order as JSON.
const shimName = "leafmill-sandbox"

// armed says that Main has been called: else starting our binary again would start a
// whole second program, which would do the same.
var armed atomic.Bool

// order is what the parent tells the shim.
type order struct {
	Path   string // program to execute, absolute
	Parser string // or the parser to run
	Args   []string
	Memory uint64
	CPU    uint64 // seconds
	File   uint64
}

// exitNoExec is the shim's exit code when it could not execute the program.
const exitNoExec = 127

// stackMax bounds a parser's recursion, which Go lets grow to 1 GB.
const stackMax = 64 * mib

// Main returns at once in an ordinary process. In a child it never returns: it limits the
// process and becomes the tool or runs the parser of that name. It is the first line of
// main; the parsers are known by name in parent and child alike.
func Main(parsers map[string]Parser) {
	if len(os.Args) != 2 || os.Args[0] != shimName {
		armed.Store(true)
		return
	}
	code, err := child(parsers)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// yield is the niceness of children.
const yield = 5

func child(parsers map[string]Parser) (int, error) {
	runtime.LockOSThread() // no_new_privs belongs to the thread
	var o order
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil {
		return exitNoExec, fmt.Errorf("sandbox: order: %w", err)
	}
	// On a machine short of memory the kernel shall take the child, not the service.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	// Searches, small documents and the bus are served by the service itself: a tool that
	// computes for seconds yields to them. Alone on the machine it is as fast as without.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, yield)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return exitNoExec, fmt.Errorf("sandbox: no_new_privs: %w", err)
	}
	parser, ok := parsers[o.Parser]
	if o.Path == "" && !ok {
		return exitNoExec, fmt.Errorf("sandbox: no parser %q", o.Parser)
	}
	for _, l := range []struct {
		resource   int
		soft, hard uint64
	}{
		{unix.RLIMIT_CORE, 0, 0},
		{unix.RLIMIT_NOFILE, 256, 256},
		{unix.RLIMIT_FSIZE, o.File, o.File},
		{unix.RLIMIT_CPU, o.CPU, o.CPU + 1}, // at the soft limit SIGXCPU, which Go ignores; at the hard one SIGKILL
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}); err != nil {
			return exitNoExec, fmt.Errorf("sandbox: limit %d: %w", l.resource, err)
		}
	}
	memory := &unix.Rlimit{Cur: o.Memory, Max: o.Memory}
	if o.Path != "" {
		return exitNoExec, fmt.Errorf("sandbox: %s: %w", o.Path, become(o.Path, append([]string{o.Path}, o.Args...), memory))
	}
	if err := unix.Setrlimit(unix.RLIMIT_AS, memory); err != nil {
		return exitNoExec, fmt.Errorf("sandbox: memory limit: %w", err)
	}
	debug.SetMaxStack(stackMax)
	if err := parser(o.Args, os.Stdin, os.Stdout); err != nil {
		return 1, err
	}
	return 0, nil
}

// become limits the address space and executes the program. This process has mapped more
// than a tool may, so from the one system call to the other it must not ask for memory:
// the collector is off, everything is prepared, and nothing between may allocate.
func become(path string, args []string, memory *unix.Rlimit) error {
	debug.SetGCPercent(-1)
	path0, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	return execLimited(path0, argv, env, memory)
}

// execLimited returns only when it fails.
//
//go:norace
func execLimited(path *byte, argv, env []*byte, memory *unix.Rlimit) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(memory)), 0, 0, 0)
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)),
			uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	}
	return errno
}
