// Package sandbox runs one tool or parser over untrusted bytes in a child process
// that can be killed and that cannot take more than it was given.
//
// Guarantees, for every run:
//   - the child never runs a byte of the tool before its limits on memory, CPU time and
//     file size and no_new_privs are in force: our own binary starts itself again as a
//     shim that sets them and then executes the tool, or runs a Go parser;
//   - it ends with its context, with its time limit and with this process, together with
//     everything left in its process group;
//   - what it writes to standard output is capped while it writes, of standard error only
//     the beginning and the end are kept;
//   - it works in a directory of its own, which TMPDIR names too, and which is removed
//     whatever happens; directories of a process that was killed are removed by the next;
//   - it gets none of this process's environment but PATH.
//
// It still sees the file system and the network: keeping it from those takes namespaces.
//
// A program that uses the package calls [Main] as the first line of its main, and of
// TestMain: the child is that program.
//
// The price is one start of the whole binary a run, which is the initialisation of every
// package linked into it (about 12 ms with an index, a NATS server and a database): give
// the child work that is worth it.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoTool says that the program is not installed.
var ErrNoTool = errors.New("program not found")

// Sandbox makes the directories its children work in, below one directory. Its methods
// may be called from many goroutines.
type Sandbox struct {
	dir  string
	lock *os.File
}

// lockName is held by flock for the life of the process that owns a directory; the kernel
// lets go of it even after kill -9.
const lockName = ".lock"

// New prepares a directory of its own below dir and removes those that processes left
// there which are gone. Several processes may share dir.
func New(dir string) (*Sandbox, error) {
	if !armed.Load() {
		return nil, errors.New("sandbox: the program does not call sandbox.Main first, so a child would be a second program")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sweep(dir)
	// The name appears only once the lock is held, or another process would sweep it.
	tmp, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return nil, err
	}
	lock, err := hold(tmp)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	own := filepath.Join(dir, "run-"+strings.TrimPrefix(filepath.Base(tmp), "new-"))
	if err := os.Rename(tmp, own); err != nil {
		return nil, errors.Join(err, lock.Close(), os.RemoveAll(tmp))
	}
	return &Sandbox{dir: own, lock: lock}, nil
}

// Close removes the sandbox's directory. No run may be under way.
func (s *Sandbox) Close() error {
	return errors.Join(os.RemoveAll(s.dir), s.lock.Close())
}

// hold takes the lock of a directory, or fails at once when another process has it.
func hold(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweep removes the directories of processes that are gone. What cannot be removed is
// left for the next start: it is not worth refusing to work.
func sweep(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, "run-*"))
	for _, d := range old {
		if lock, err := hold(d); err == nil {
			_ = os.RemoveAll(d)
			_ = lock.Close()
		}
	}
}

// Work is the private directory of one task, in which its children run one after another.
type Work struct {
	dir string
}

// Work makes the directory of a task. The caller closes it.
func (s *Sandbox) Work() (*Work, error) {
	dir, err := os.MkdirTemp(s.dir, "task-")
	if err != nil {
		return nil, err
	}
	return &Work{dir: dir}, nil
}

// Path is the absolute path of a file in the directory.
func (w *Work) Path(name string) string { return filepath.Join(w.dir, name) }

// Close removes the directory and all that children left in it.
func (w *Work) Close() error { return os.RemoveAll(w.dir) }
