package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Names in the data folder.
const (
	lockFile = "lock"
	httpFile = "http.addr" // where `up` listens, for scripts that let it take a free port
	natsFile = "nats.addr"
)

// dataFolder is a folder that one `leafmill up` owns.
type dataFolder struct {
	path string
	lock *os.File
}

// ownFolder makes the folder and takes it for this process; the kernel lets go of it even
// after kill -9.
func ownFolder(path string) (*dataFolder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("the data folder cannot be made: %w", err)
	}
	f, err := lock(path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another leafmill uses the data folder %s; stop that one, or give this one a folder of its own with --data", path)
	}
	if err != nil {
		return nil, fmt.Errorf("the data folder cannot be used: %w", err)
	}
	return &dataFolder{path: path, lock: f}, nil
}

// lock takes a folder, or fails at once with EWOULDBLOCK.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// publish writes an address for scripts, whole or not at all.
func (d *dataFolder) publish(name, addr string) error {
	tmp := filepath.Join(d.path, name+".new")
	if err := os.WriteFile(tmp, []byte(addr+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(d.path, name))
}

// close gives the folder back.
func (d *dataFolder) close() error {
	var errs []error
	for _, name := range []string{httpFile, natsFile} {
		if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, d.lock.Close())...)
}

// replicaSlots bounds how many replicas of a service may share a data folder.
const replicaSlots = 64

// slot is a folder name, name-2 and so on, that no other replica on this data folder uses:
// for a service whose files belong to one process and can be made anew.
func slot(data, name string) (dir string, release func() error, err error) {
	for i := 1; i <= replicaSlots; i++ {
		dir = filepath.Join(data, name)
		if i > 1 {
			dir = fmt.Sprintf("%s-%d", dir, i)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		f, err := lock(dir)
		if err == nil {
			return dir, f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("%d replicas of %s use the data folder %s already", replicaSlots, name, data)
}

// folderID is a name for a folder that it keeps for ever, made at its first use.
func folderID(dir string) (string, error) {
	path := filepath.Join(dir, "id")
	id, err := os.ReadFile(path)
	if err == nil && len(id) > 0 {
		return string(id), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	fresh := uuid.NewString()
	return fresh, os.WriteFile(path, []byte(fresh), 0o600)
}
