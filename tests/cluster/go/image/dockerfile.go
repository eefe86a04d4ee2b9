package main

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// recipe is what a Dockerfile says, in its own order where order matters.
type recipe struct {
	copies     []copyStep
	entrypoint []string
	cmd        []string
	user       string
	workdir    string
	env        []string
	labels     map[string]string
}

// copyStep is one COPY; a WORKDIR is a copyStep without sources, as it too
// makes a directory.
type copyStep struct {
	line    int
	sources []string
	dest    string // absolute; ends in "/" when it must be a directory
}

// parseDockerfile reads the subset of the Dockerfile language that an image
// of finished binaries needs. What it does not know is an error, never
// skipped: Docker would have done something that this tool would not.
func parseDockerfile(text string) (*recipe, error) {
	r := &recipe{labels: map[string]string{}, workdir: "/"}
	seenFrom := false
	for _, in := range instructions(text) {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("line %d: %s: %s", in.line, in.name, fmt.Sprintf(format, args...))
		}
		if !seenFrom && in.name != "FROM" {
			return nil, fail("comes before FROM")
		}
		if strings.Contains(in.rest, "$") {
			return nil, fail("variables are not supported: write the value itself")
		}
		switch in.name {
		case "FROM":
			if seenFrom {
				return nil, fail("only one stage is supported")
			}
			if in.rest != "scratch" {
				return nil, fail("only scratch is supported as a base, not %q", in.rest)
			}
			seenFrom = true
		case "COPY":
			words, err := copyWords(in.rest)
			if err != nil {
				return nil, fail("%v", err)
			}
			step := copyStep{line: in.line, sources: words[:len(words)-1], dest: r.absolute(words[len(words)-1])}
			if len(step.sources) > 1 && !strings.HasSuffix(step.dest, "/") {
				return nil, fail("several sources need a destination that ends in /")
			}
			r.copies = append(r.copies, step)
		case "WORKDIR":
			if in.rest == "" {
				return nil, fail("names no directory")
			}
			r.workdir = path.Clean(r.absolute(in.rest))
			r.copies = append(r.copies, copyStep{line: in.line, dest: r.workdir})
		case "ENTRYPOINT", "CMD":
			var argv []string
			if json.Unmarshal([]byte(in.rest), &argv) != nil || len(argv) == 0 {
				return nil, fail(`the image has no shell: use the form ["program", "argument"]`)
			}
			if in.name == "CMD" {
				r.cmd = argv
			} else {
				r.entrypoint = argv
			}
		case "USER":
			if in.rest == "" || strings.ContainsAny(in.rest, " \t") {
				return nil, fail("wants one word, as in 65532:65532")
			}
			r.user = in.rest
		case "ENV", "LABEL":
			pairs, err := keyValues(in.rest)
			if err != nil {
				return nil, fail("%v", err)
			}
			for _, kv := range pairs {
				if in.name == "LABEL" {
					r.labels[kv[0]] = kv[1]
				} else {
					r.setEnv(kv[0], kv[1])
				}
			}
		default:
			return nil, fail("not supported here: only FROM scratch, COPY, WORKDIR, ENTRYPOINT, CMD, USER, ENV and LABEL are")
		}
	}
	if !seenFrom {
		return nil, fmt.Errorf("no FROM")
	}
	return r, nil
}

func (r *recipe) absolute(p string) string {
	if !path.IsAbs(p) {
		dir := strings.HasSuffix(p, "/") || p == "."
		p = path.Join(r.workdir, p)
		if dir {
			p += "/"
		}
	}
	return p
}

func (r *recipe) setEnv(key, value string) {
	for i, e := range r.env {
		if strings.HasPrefix(e, key+"=") {
			r.env[i] = key + "=" + value
			return
		}
	}
	r.env = append(r.env, key+"="+value)
}

type instruction struct {
	line int
	name string
	rest string
}

// instructions joins continued lines and drops comments, which may also stand
// between the lines of one instruction.
func instructions(text string) []instruction {
	var out []instruction
	var joined string
	start := 0
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		if joined == "" {
			start = i + 1
		}
		if strings.HasSuffix(trimmed, `\`) {
			joined += strings.TrimSuffix(trimmed, `\`) + " "
			continue
		}
		out = append(out, split(start, joined+trimmed))
		joined = ""
	}
	if joined != "" {
		out = append(out, split(start, joined))
	}
	return out
}

func split(line int, s string) instruction {
	name, rest := s, ""
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		name, rest = s[:i], strings.TrimSpace(s[i:])
	}
	return instruction{line: line, name: strings.ToUpper(name), rest: rest}
}

func copyWords(rest string) ([]string, error) {
	var words []string
	if strings.HasPrefix(rest, "[") {
		if err := json.Unmarshal([]byte(rest), &words); err != nil {
			return nil, fmt.Errorf("not a list of strings: %v", err)
		}
	} else {
		words = strings.Fields(rest)
	}
	if len(words) > 0 && strings.HasPrefix(words[0], "--") {
		return nil, fmt.Errorf("the flag %s is not supported", words[0])
	}
	if len(words) < 2 {
		return nil, fmt.Errorf("wants a source and a destination")
	}
	return words, nil
}

// keyValues splits `a=b c="d e"`.
func keyValues(rest string) ([][2]string, error) {
	var pairs [][2]string
	for rest != "" {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || strings.ContainsAny(key, " \t\"") {
			return nil, fmt.Errorf("wants key=value, not %q", rest)
		}
		var value strings.Builder
		quoted, i := false, 0
		for ; i < len(after); i++ {
			c := after[i]
			switch {
			case c == '"':
				quoted = !quoted
				continue
			case c == '\'' || c == '\\':
				return nil, fmt.Errorf("only double quotes are supported, and no escapes")
			case !quoted && (c == ' ' || c == '\t'):
			default:
				value.WriteByte(c)
				continue
			}
			break
		}
		if quoted {
			return nil, fmt.Errorf("unclosed quote after %s=", key)
		}
		pairs = append(pairs, [2]string{key, value.String()})
		rest = strings.TrimSpace(after[i:])
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("wants key=value")
	}
	return pairs, nil
}
