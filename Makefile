# Lines that begin with two # are what `make help` prints.
## make                what is below as `all`: for CUDA where nvcc is found, else for the CPU

# DEVICE as it was given; tests without one are built for what is here.
DEVICE_GIVEN := $(DEVICE)

##
## Settings, as in `make DEVICE=cpu USE_MPI=0`; what a changed one concerns is built again:
##   DEVICE            cuda (which contains the CPU device too) or cpu
DEVICE ?= $(if $(NVCC),cuda,cpu)
##   USE_MPI           1; 0 builds without OpenMPI, for one process
USE_MPI ?= 1
##   GPU_ARCH          sm_90a, or several; by default that of the GPU here, or sm_80, sm_90a, sm_100 and PTX if there is none
GPU_ARCH ?= $(or $(patsubst sm_90,sm_90a,$(addprefix sm_,$(GPU_FOUND))),sm_80 sm_90a sm_100 compute_100)
##   OPTIMIZE          -O3 -march=native, for the processor here: for hosts with older ones name what all of them have,
##                     as in OPTIMIZE="-O3 -march=x86-64-v3"
OPTIMIZE ?= -O3 -march=native
##   CC CXX NVCC MPICC CFLAGS LDFLAGS      compilers, and flags besides those that are needed
CC ?= cc
CXX ?= c++
NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
MPICC ?= mpicc
##   OPENBLAS_FLAGS CJSON_FLAGS XXHASH_FLAGS CUDA_FLAGS CUDA_HOME MPI_CFLAGS MPI_LIBS CUDNN_FRONTEND
##                     where libraries are that the compiler does not find by itself, as in
##                     OPENBLAS_FLAGS="-I/opt/openblas/include -L/opt/openblas/lib -lopenblas"
OPENBLAS_FLAGS ?= $(addprefix -I,$(wildcard /usr/include/openblas)) -lopenblas
CJSON_FLAGS ?= -lcjson
XXHASH_FLAGS ?= -lxxhash
MPI_CFLAGS ?= $(shell $(MPICC) --showme:compile 2>/dev/null)
MPI_LIBS ?= $(shell $(MPICC) --showme:link 2>/dev/null)
CUDA_HOME ?= $(if $(NVCC),$(abspath $(dir $(realpath $(NVCC)))..))
CUDA_FLAGS ?= -I$(CUDA_HOME)/include $(addprefix -L,$(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))
CUDNN_FRONTEND ?= .deps/python/include

# Found once, not at every use.
NVCC := $(NVCC)
MPI_CFLAGS := $(MPI_CFLAGS)
MPI_LIBS := $(MPI_LIBS)

ifeq ($(filter $(DEVICE),cpu cuda),)
$(error DEVICE=$(DEVICE): it must be cpu or cuda)
endif
ifeq ($(filter $(USE_MPI),0 1),)
$(error USE_MPI=$(USE_MPI): it must be 0 or 1)
endif

# --- what the compilers are given -------------------------------------------------------------------------------------

BUILD := build/$(DEVICE)
WARNINGS := -Wall -Wextra -Werror
DEFINES := -D_GNU_SOURCE
ifeq ($(DEVICE),cuda)
DEFINES += -DUSE_CUDA
endif
ifeq ($(USE_MPI),1)
MPI_DEFINES := -DUSE_MPI
else
override MPI_CFLAGS :=
override MPI_LIBS :=
endif
INCLUDES = -Illmc -I. $(MPI_DEFINES) $(filter -I%,$(OPENBLAS_FLAGS) $(CJSON_FLAGS) $(XXHASH_FLAGS) $(MPI_CFLAGS))
LIBS = $(filter-out -I%,$(OPENBLAS_FLAGS) $(CJSON_FLAGS) $(XXHASH_FLAGS)) $(MPI_LIBS) -lm -lpthread
# No contraction and no fast-math: the plain C is the oracle, and its results may not depend on the optimizer. Nobody
# looks at errno or at trapped exceptions after arithmetic, and without them square roots become vector code.
override CFLAGS += -std=gnu11 $(OPTIMIZE) -g -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math \
  $(WARNINGS) $(DEFINES) -MMD -MP
LINK = $(CC) -fopenmp $(LDFLAGS)

# A machine code for each GPU, and PTX for those to come.
GPU_FOUND = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr -d . | grep -E '^[0-9]+$$')
ifeq ($(DEVICE),cuda)
GENCODE := $(foreach arch,$(GPU_ARCH),-gencode=arch=$(arch:sm_%=compute_%),code=$(arch))
NVCCFLAGS += -std=c++17 -O3 -g -lineinfo $(GENCODE) $(DEFINES) $(CUDA_FLAGS) -MMD -MP \
  -Xcompiler -fopenmp,-Wall,-Wextra,-Werror -Werror all-warnings
CXXFLAGS += -std=c++17 -O2 -g $(WARNINGS) $(DEFINES) -MMD -MP -Illmc $(filter -I%,$(CUDA_FLAGS)) -isystem $(CUDNN_FRONTEND)
INCLUDES += $(patsubst -I%,-isystem %,$(filter -I%,$(CUDA_FLAGS)))
LIBS += $(filter -L%,$(CUDA_FLAGS)) -lcublasLt -lcudnn -lnccl -lnvrtc -lcudart -lstdc++
LINK = $(CXX) -fopenmp $(LDFLAGS)
endif

# A file of flags changes only when they do: what is made with them depends on it, and is made again then.
FLAGS_cc = $(CC) $(CFLAGS) $(INCLUDES)
FLAGS_cxx = $(CXX) $(CXXFLAGS)
FLAGS_nvcc = $(NVCC) $(NVCCFLAGS) $(INCLUDES)
FLAGS_link = $(LINK) $(LIBS)
FLAGS_libraries = $(CC) $(INCLUDES) $(LIBS) $(NVCC) $(CUDA_FLAGS) $(CUDNN_FRONTEND)
FLAGS_fuzz = $(FUZZ_CC) $(FUZZ_FLAGS) $(CJSON_FLAGS) $(XXHASH_FLAGS)
FLAGS_lint = $(CC) $(LINT_FLAGS)
FLAG_FILES := $(addprefix $(BUILD)/flags/,cc cxx nvcc link libraries) build/flags/fuzz build/flags/lint

$(FLAG_FILES): export FLAGS = $(FLAGS_$(@F))
$(FLAG_FILES): FORCE
	@mkdir -p $(@D)
	@printf '%s\n' "$$FLAGS" | cmp -s - $@ || printf '%s\n' "$$FLAGS" > $@

# --- the programs -----------------------------------------------------------------------------------------------------

SHARED := $(wildcard llmc/*/*.c)
TESTS := $(filter-out dev/test/fuzz/% dev/test/preload/%,$(wildcard dev/test/*.c dev/test/*/*.c))
CPU_ONCE := $(patsubst %,llmc/device/cpu/%.c,device collectives)
# The CPU's operations, compiled for each storage type.
CPU_OPS := $(filter-out $(CPU_ONCE),$(wildcard llmc/device/cpu/*.c))

LIBRARY := $(SHARED:%.c=$(BUILD)/%.o) $(CPU_ONCE:%.c=$(BUILD)/%.o) \
  $(foreach storage,64 32 16,$(CPU_OPS:%.c=$(BUILD)/%.storage$(storage).o))
ifeq ($(DEVICE),cuda)
LIBRARY += $(patsubst %.cu,$(BUILD)/%.o,$(wildcard llmc/device/cuda/*.cu))
LIBRARY += $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard llmc/device/cuda/*.cpp))
endif

##
## Targets:
##   all               ./train_lighthouse and ./test_lighthouse, the self-test
all: train_lighthouse test_lighthouse

# The programs are made in build/, one for each device, and the last one made lands here.
train_lighthouse test_lighthouse: %: $(BUILD)/% FORCE
	@cmp -s $< $@ || cp --remove-destination $< $@

$(BUILD)/train_lighthouse: $(BUILD)/train_lighthouse.o $(LIBRARY) $(BUILD)/flags/link
	$(LINK) -o $@ $(filter %.o,$^) $(LIBS)

# The self-test takes calls of exit, so that a fatal error ends one test (dev/test/test.c).
$(BUILD)/test_lighthouse: $(BUILD)/test_lighthouse.o $(TESTS:%.c=$(BUILD)/%.o) $(LIBRARY) $(BUILD)/flags/link
	$(LINK) -Wl,--wrap=exit -o $@ $(filter %.o,$^) $(LIBS)

##   tools             the programs of dev/evaluate and, for CUDA, of dev/bench, in build/DEVICE/dev
TOOLS := $(patsubst %.c,$(BUILD)/%,$(wildcard dev/evaluate/*.c))
ifeq ($(DEVICE),cuda)
TOOLS += $(patsubst %.c,$(BUILD)/%,$(wildcard dev/bench/*.c))
endif
tools: $(TOOLS)

$(TOOLS): %: %.o $(LIBRARY) $(BUILD)/flags/link
	$(LINK) -o $@ $(filter %.o,$^) $(LIBS)

$(BUILD)/%.o: %.c $(BUILD)/flags/cc | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(INCLUDES) -c -o $@ $<

define cpu_storage
$(BUILD)/%.storage$(1).o: %.c $(BUILD)/flags/cc | $(BUILD)/libraries
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) -DSTORAGE=$(1) $$(INCLUDES) -c -o $$@ $$<
endef
$(foreach storage,64 32 16,$(eval $(call cpu_storage,$(storage))))

# The programs' own code is C.
$(BUILD)/train_lighthouse.o $(BUILD)/test_lighthouse.o: $(BUILD)/%.o: %.cu $(BUILD)/flags/cc | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(INCLUDES) -x c -c -o $@ $<

$(BUILD)/%.o: %.cu $(BUILD)/flags/nvcc | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(INCLUDES) -c -o $@ $<

$(BUILD)/%.o: %.cpp $(BUILD)/flags/cxx | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<

# Each library is looked for by compiling and linking with it, its flags after the source, as for the programs.
# check_library: name, header, flags, how to get it
define check_library
	@printf '#include <$(2)>\nint main(void) { return 0; }\n' | $(CC) -x c - -x none -o $@.try $(3) 2> $@.log || \
	  { echo "error: $(1) was not found (header $(2), flags: $(3)); install it: $(4); details in $@.log" >&2; exit 1; }
endef
MPI_HINT := apt-get install libopenmpi-dev (or set MPI_CFLAGS and MPI_LIBS; USE_MPI=0 builds without)

$(BUILD)/libraries: $(BUILD)/flags/libraries
	$(call check_library,OpenBLAS,cblas.h,$(OPENBLAS_FLAGS),apt-get install libopenblas-dev (or set OPENBLAS_FLAGS))
	$(call check_library,cJSON,cjson/cJSON.h,$(CJSON_FLAGS),apt-get install libcjson-dev (or set CJSON_FLAGS))
	$(call check_library,xxHash,xxhash.h,$(XXHASH_FLAGS),apt-get install libxxhash-dev (or set XXHASH_FLAGS))
ifeq ($(USE_MPI),1)
	$(call check_library,OpenMPI,mpi.h,$(MPI_CFLAGS) $(MPI_LIBS),$(MPI_HINT))
endif
ifeq ($(DEVICE),cuda)
	@[ -n "$(NVCC)" ] || \
	  { echo "error: nvcc was not found; install the CUDA Toolkit, set NVCC, or build with DEVICE=cpu" >&2; exit 1; }
	$(call check_library,cuBLASLt,cublasLt.h,$(CUDA_FLAGS) -lcublasLt -lcudart,the CUDA Toolkit has it (or set CUDA_FLAGS))
	$(call check_library,cuDNN,cudnn.h,$(CUDA_FLAGS) -lcudnn,apt-get install libcudnn9-dev-cuda-13 (or set CUDA_FLAGS))
	$(call check_library,NCCL,nccl.h,$(CUDA_FLAGS) -lnccl -lcudart,apt-get install libnccl-dev (or set CUDA_FLAGS))
	@[ -f $(CUDNN_FRONTEND)/cudnn_frontend.h ] || { echo "error: cudnn_frontend.h was not found in $(CUDNN_FRONTEND);" \
	  "install it: scripts/setup.sh (or set CUDNN_FRONTEND)" >&2; exit 1; }
endif
	@rm -f $@.try $@.log
	@touch $@

# --- tests ------------------------------------------------------------------------------------------------------------

# As many jobs as there are processors, where make was not told how many.
MAKE_HERE = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))

##   test              installs what is missing, builds (for a GPU where one is, if DEVICE is not given), runs all tests
test:
	@echo "make test: builds, then runs the self-test and the end-to-end tests: on two cores about ten minutes"
	@if command -v dpkg-query > /dev/null; then scripts/setup.sh; fi
	@$(MAKE_HERE) DEVICE=$(or $(DEVICE_GIVEN),$(if $(and $(NVCC),$(GPU_FOUND)),cuda,cpu)) all
	@dev/test/run.sh

# What tests preload into the program: a disk that fails, a processor that does.
build/%.so: dev/test/preload/%.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g -D_GNU_SOURCE $(WARNINGS) $(filter -I%,$(MPI_CFLAGS)) -shared -fPIC -o $@ $< -ldl -lm

##   sanitize          the self-test on the CPU, watched by AddressSanitizer and UndefinedBehaviorSanitizer; with
##                     SANITIZE=thread by ThreadSanitizer, those of its tests in which threads save a checkpoint
SANITIZE ?= address,undefined
comma := ,
SANITIZED := build/sanitize-$(subst $(comma),-,$(SANITIZE))
# OpenMP's own threads are not watched (its library knows nothing of ThreadSanitizer), so there is one.
SANITIZED_TEST := $(if $(findstring thread,$(SANITIZE)),OMP_NUM_THREADS=1 setarch -R $(SANITIZED)/test_lighthouse checkpoint: \
  ,$(SANITIZED)/test_lighthouse)

# A test asks for more memory than there is; what a test leaves behind that fails, or the program at its end, is no leak.
sanitize:
	@$(MAKE_HERE) DEVICE=cpu BUILD=$(SANITIZED) LDFLAGS=-fsanitize=$(SANITIZE) \
	  OPTIMIZE='-O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE) -fno-sanitize-recover=all' $(SANITIZED)/test_lighthouse
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 TSAN_OPTIONS=allocator_may_return_null=1 OMP_WAIT_POLICY=passive \
	  $(SANITIZED_TEST)

##   fuzz              fuzz targets of what reads files, in build/fuzz; dev/test/fuzz/harness.h says how to run them
FUZZ_CC ?= clang
FUZZ_FLAGS := -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  -Wall -Wextra -Wno-source-uses-openmp -Wno-unused-parameter -Wno-unused-but-set-variable -D_GNU_SOURCE -Illmc
FUZZED := $(wildcard llmc/base/*.c llmc/parallel/*.c) $(filter-out %/saver.c %/snapshot.c,$(wildcard llmc/checkpoint/*.c)) \
  $(patsubst %,llmc/%.c,model/config model/parameters run/dataset)
FUZZ_TARGETS := $(patsubst dev/test/fuzz/%.c,build/fuzz/%,$(filter-out %/harness.c,$(wildcard dev/test/fuzz/*.c)))

fuzz: $(FUZZ_TARGETS)

$(FUZZ_TARGETS): build/fuzz/%: dev/test/fuzz/%.c dev/test/fuzz/harness.c dev/test/fuzz/harness.h $(FUZZED) \
  $(wildcard llmc/*/*.h) build/flags/fuzz
	@command -v $(FUZZ_CC) > /dev/null || \
	  { echo "error: $(FUZZ_CC) was not found; install it: scripts/setup.sh --develop (or set FUZZ_CC)" >&2; exit 1; }
	@mkdir -p build/fuzz/corpus/$*
	$(FUZZ_CC) $(FUZZ_FLAGS) $(filter -I%,$(CJSON_FLAGS) $(XXHASH_FLAGS)) \
	  -Wl,--wrap=exit,--wrap=calloc,--wrap=free,--wrap=glob,--wrap=globfree \
	  -o $@ $(filter %.c,$^) $(filter-out -I%,$(CJSON_FLAGS) $(XXHASH_FLAGS)) -lm -lpthread

##   fuzz-check        runs each of them for half a minute (FUZZ_SECONDS=30) on the files it has found so far
FUZZ_SECONDS ?= 30
FUZZ_CHECKS := $(FUZZ_TARGETS:build/fuzz/%=fuzz-check-%)
fuzz-check:
	@$(MAKE_HERE) --output-sync $(FUZZ_CHECKS)

$(FUZZ_CHECKS): fuzz-check-%: build/fuzz/%
	@$< -close_fd_mask=3 -print_final_stats=1 -artifact_prefix=build/fuzz/$*- -max_total_time=$(FUZZ_SECONDS) \
	  build/fuzz/corpus/$* > $<.log 2>&1 || { tail -n 40 $<.log; exit 1; }
	@echo "fuzz $*: $$(sed -n 's/^stat::number_of_executed_units: *//p' $<.log) inputs read or refused"

# --- lint -------------------------------------------------------------------------------------------------------------

##   lint              formatting, wide warnings, scripts, Python, includes against the order of the wings, sizes
CLANG_FORMAT ?= .deps/lint/clang_format/data/bin/clang-format
RUFF ?= .deps/lint/bin/ruff
SHELLCHECK ?= shellcheck
C_FILES = $(shell find llmc dev *.cu -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp')
PYTHON_FILES = $(shell find dev scripts -name '*.py')
SHELL_FILES = $(shell find dev scripts .ci -name '*.sh' -o -path .ci/run)
# Left out: -Wfloat-equal and -Wdouble-promotion (comparisons with 0 are exact, NAN and INFINITY are floats, sums of floats
# are meant to be double), -Wcast-qual (a view of memory is const for some and written by others).
LINT_FLAGS = -std=gnu11 -O1 -fopenmp $(WARNINGS) -Wconversion -Wsign-conversion -Wshadow -Wstrict-prototypes \
  -Wmissing-prototypes -Wmissing-declarations -Wold-style-definition -Wredundant-decls -Wnested-externs -Wundef -Wformat=2 \
  -Wnull-dereference -Wduplicated-branches -Wduplicated-cond -Wlogical-op -Wpointer-arith -Wvla -Walloca -Wunused-macros \
  -D_GNU_SOURCE $(INCLUDES)
LINT_SOURCES = $(filter-out $(if $(filter cpu,$(DEVICE)),dev/bench/%),$(filter %.c,$(C_FILES))) $(wildcard *.cu)
LINT_OBJECTS = $(LINT_SOURCES:%=build/lint/%.o)
LINTS := $(addprefix build/lint/,format python scripts includes sizes)

lint:
	@$(MAKE_HERE) -k --output-sync lint-all
lint-all: $(LINTS) $(LINT_OBJECTS)
	@:

# need: program, name
need = command -v $(1) > /dev/null || \
  { echo "error: $(2) was not found ($(1)); install it: scripts/setup.sh --develop" >&2; exit 1; }

$(LINTS): | build/lint/
build/lint/:
	@mkdir -p $@

build/lint/format: $(C_FILES) .clang-format
	@$(call need,$(CLANG_FORMAT),clang-format)
	@$(CLANG_FORMAT) --dry-run -Werror $(C_FILES)
	@touch $@

build/lint/python: $(PYTHON_FILES) dev/ruff.toml
	@$(call need,$(RUFF),ruff)
	@$(RUFF) check --quiet --no-cache --config dev/ruff.toml dev scripts
	@touch $@

build/lint/scripts: $(SHELL_FILES) $(wildcard scripts/.shellcheckrc)
	@$(call need,$(SHELLCHECK),shellcheck)
	@$(SHELLCHECK) $(SHELL_FILES)
	@touch $@

build/lint/includes build/lint/sizes: build/lint/%: dev/lint/%.py $(C_FILES)
	@python3 $<
	@touch $@

build/lint/%.o: % build/flags/lint
	@mkdir -p $(@D)
	@$(foreach storage,$(if $(filter $<,$(CPU_OPS)),64 32 16,none),\
	  $(CC) $(LINT_FLAGS) $(if $(filter none,$(storage)),,-DSTORAGE=$(storage)) -MMD -MP -MT $@ -MF $@.d -x c -c -o $@ $< &&) true

##   format            formats all C and CUDA as .clang-format says
format:
	@$(call need,$(CLANG_FORMAT),clang-format)
	@$(CLANG_FORMAT) -i $(C_FILES)

##   clean             removes all that was built
clean:
	rm -rf build train_lighthouse test_lighthouse

##   help              this
help:
	@sed -n 's/^## \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

FORCE:
.PHONY: all tools test sanitize fuzz fuzz-check $(FUZZ_CHECKS) lint lint-all format clean help FORCE
.SECONDARY:
.DEFAULT_GOAL := all

-include $(shell find $(BUILD) build/lint -name '*.d' 2>/dev/null)
