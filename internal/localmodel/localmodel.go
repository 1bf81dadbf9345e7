// Package localmodel knows where the files of the built-in embedding model lie and what they must be.
// `make setup` (scripts/setup) puts them there; nothing in the program writes them. A folder is named by
// its version, so that two versions of Leafmill can share one cache.
package localmodel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/leafmill/leafmill/events"
)

// The model: all-MiniLM-L6-v2 with 8 bit weights, and the ONNX Runtime that computes it. scripts/setup
// has the same names and hashes; a test holds the two together.
const (
	Name           = "minilm-l6-v2-int8-1.0.0"
	RuntimeVersion = "1.31.1"

	modelSHA     = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
	tokenizerSHA = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
)

// runtimeSHA is the hash of the runtime's shared library by GOARCH, and the machine's name in paths.
func runtimeSHA(arch string) (machine, sha string) {
	switch arch {
	case "amd64":
		return "x86_64", "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"
	case "arm64":
		return "aarch64", "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"
	}
	return arch, ""
}

// File is one file and the sha256 that it must have, in hex.
type File struct {
	Path   string
	SHA256 string
}

// Files are the three files of the local model.
type Files struct {
	Model     File // the ONNX graph
	Tokenizer File // tokenizer.json of Hugging Face
	Runtime   File // the shared library of the ONNX Runtime; no hash on a machine it is not built for
}

// Dir is the folder of the models: dir itself if it is given (LEAFMILL_MODEL_DIR), else
// leafmill/models in the user's cache. It is empty when the user has neither a cache nor a home.
func Dir(dir string) string {
	if dir != "" {
		return dir
	}
	// Not os.UserCacheDir: scripts/setup follows XDG on every system, and the two must agree.
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		cache = filepath.Join(home, ".cache")
	}
	return filepath.Join(cache, "leafmill", "models")
}

// In names the files below a folder of models, as Dir gives it. They need not exist.
func In(dir string) Files {
	machine, sha := runtimeSHA(runtime.GOARCH)
	return Files{
		Model:     File{filepath.Join(dir, Name, "model.onnx"), modelSHA},
		Tokenizer: File{filepath.Join(dir, Name, "tokenizer.json"), tokenizerSHA},
		Runtime: File{filepath.Join(dir, "onnxruntime-"+RuntimeVersion+"-"+machine,
			"libonnxruntime.so."+RuntimeVersion), sha},
	}
}

// Check reads all files and compares their hashes, about 0.1 s. The error is a missing_model Failure
// that says what to do.
func (f Files) Check() error {
	for _, file := range []File{f.Tokenizer, f.Model, f.Runtime} {
		if err := file.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Check compares the file's hash. The error is a missing_model Failure that says what to do.
func (f File) Check() error {
	if f.SHA256 == "" {
		return events.Fail(events.MissingModel,
			"The local embedding model runs on Linux on x86_64 and aarch64 only; set LEAFMILL_EMBED_PROVIDER=openai and an endpoint.")
	}
	sum, err := hash(f.Path)
	if os.IsNotExist(err) {
		return events.Fail(events.MissingModel,
			"The local embedding model is not installed (%s is missing); run `make setup`.", f.Path).Because(err)
	}
	if err != nil {
		return events.Fail(events.MissingModel, "The local embedding model cannot be read: %s.", err).Because(err)
	}
	if sum != f.SHA256 {
		return events.Fail(events.MissingModel,
			"The file %s is damaged or not the expected one; run `make setup` to fetch it again.", f.Path).
			Because(fmt.Errorf("sha256 is %s, not %s", sum, f.SHA256))
	}
	return nil
}

func hash(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }() // only read from
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
