//go:build unix

package embedded

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/leafmill/leafmill/events"
)

// lockDir takes the folder for this process, until the file is closed or the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, events.Fail(events.Unavailable, "another process uses the index in %s; stop it first", dir).Because(err)
	}
	return f, nil
}
