# make                    the CUDA build where nvcc is found, else the CPU build
# make DEVICE=cpu|cuda    one of them
# make test               builds, then runs the self-test and the end-to-end tests
# make tools              the programs of dev/evaluate and dev/bench, in build/$(DEVICE)/dev
# make fuzz               fuzz targets of what reads files (dev/test/fuzz), in build/fuzz; needs clang
# Overridable: CC CXX NVCC CFLAGS GPU_ARCH USE_MPI, and per library the paths below.

CC ?= cc
CXX ?= c++
NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
DEVICE ?= $(if $(NVCC),cuda,cpu)
USE_MPI ?= 1
MPICC ?= mpicc

ifeq ($(filter $(DEVICE),cpu cuda),)
$(error DEVICE=$(DEVICE): it must be cpu or cuda)
endif

# Where libraries are, if the compiler does not find them by itself: OPENBLAS_FLAGS="-I/opt/openblas/include -L/opt/openblas/lib -lopenblas"
OPENBLAS_FLAGS ?= $(addprefix -I,$(wildcard /usr/include/openblas)) -lopenblas
CJSON_FLAGS ?= -lcjson
XXHASH_FLAGS ?= -lxxhash
MPI_CFLAGS ?= $(shell $(MPICC) --showme:compile 2>/dev/null)
MPI_LIBS ?= $(shell $(MPICC) --showme:link 2>/dev/null)
CUDA_HOME ?= $(if $(NVCC),$(abspath $(dir $(realpath $(NVCC)))..))
CUDA_FLAGS ?= -I$(CUDA_HOME)/include $(addprefix -L,$(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))
CUDNN_FRONTEND ?= .deps/python/include

BUILD := build/$(DEVICE)
WARNINGS := -Wall -Wextra -Werror
OPTIMIZE ?= -O3 -march=native
DEFINES := -D_GNU_SOURCE
ifeq ($(USE_MPI),1)
DEFINES += -DUSE_MPI
else
override MPI_CFLAGS :=
override MPI_LIBS :=
endif
INCLUDES = -Illmc $(filter -I%,$(OPENBLAS_FLAGS) $(CJSON_FLAGS) $(XXHASH_FLAGS)) $(filter -I%,$(MPI_CFLAGS))
LIBS = $(filter-out -I%,$(OPENBLAS_FLAGS) $(CJSON_FLAGS) $(XXHASH_FLAGS)) $(MPI_LIBS) -lm -lpthread
# No contraction and no fast-math: the plain C is the oracle, and its results may not depend on the optimizer. Nobody
# looks at errno or at trapped exceptions after arithmetic, and without them square roots become vector code.
override CFLAGS += -std=gnu11 $(OPTIMIZE) -g -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math $(WARNINGS) $(DEFINES) -MMD -MP

SHARED := $(wildcard llmc/*/*.c)
TESTS := $(wildcard dev/test/*.c)
CPU_ONCE := $(patsubst %,llmc/device/cpu/%.c,device collectives)
# The CPU's operations, compiled for each storage type.
CPU_OPS := $(filter-out $(CPU_ONCE),$(wildcard llmc/device/cpu/*.c))

LIBRARY := $(SHARED:%.c=$(BUILD)/%.o) $(CPU_ONCE:%.c=$(BUILD)/%.o) \
  $(foreach storage,64 32 16,$(CPU_OPS:%.c=$(BUILD)/%.storage$(storage).o))

ifeq ($(DEVICE),cuda)
DEFINES += -DUSE_CUDA
# The GPU that is here; else a machine code for each generation, and PTX for those to come.
GPU_FOUND := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr -d . | grep -E '^[0-9]+$$')
GPU_ARCH ?= $(or $(patsubst sm_90,sm_90a,$(addprefix sm_,$(GPU_FOUND))),sm_80 sm_90a sm_100 compute_100)
GENCODE := $(foreach arch,$(GPU_ARCH),-gencode=arch=$(arch:sm_%=compute_%),code=$(arch))
NVCCFLAGS += -std=c++17 -O3 -g -lineinfo $(GENCODE) $(DEFINES) $(CUDA_FLAGS) -MMD -MP -Xcompiler -fopenmp,-Wall,-Wextra,-Werror -Werror all-warnings
CXXFLAGS += -std=c++17 -O2 -g $(WARNINGS) $(DEFINES) -MMD -MP -Illmc $(filter -I%,$(CUDA_FLAGS)) -isystem $(CUDNN_FRONTEND)
INCLUDES += $(filter -I%,$(CUDA_FLAGS))
LIBRARY += $(patsubst %.cu,$(BUILD)/%.o,$(wildcard llmc/device/cuda/*.cu)) $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard llmc/device/cuda/*.cpp))
LIBS += $(filter -L%,$(CUDA_FLAGS)) -lcublasLt -lcudnn -lnccl -lnvrtc -lcudart -lstdc++
LINK = $(CXX) -fopenmp
else
LINK = $(CC) -fopenmp
endif

all: train_lighthouse test_lighthouse

# The programs are made in build/, one for each device, and the last one made lands here.
train_lighthouse test_lighthouse: %: $(BUILD)/% FORCE
	@cmp -s $< $@ || cp --remove-destination $< $@

$(BUILD)/train_lighthouse: $(BUILD)/train_lighthouse.o $(LIBRARY)
	$(LINK) -o $@ $^ $(LIBS)

$(BUILD)/test_lighthouse: $(BUILD)/test_lighthouse.o $(TESTS:%.c=$(BUILD)/%.o) $(LIBRARY)
	$(LINK) -o $@ $^ $(LIBS)

# Each file of dev/evaluate and dev/bench is a program; the benchmarks measure CUDA devices.
TOOLS := $(patsubst %.c,$(BUILD)/%,$(wildcard dev/evaluate/*.c))
ifeq ($(DEVICE),cuda)
TOOLS += $(patsubst %.c,$(BUILD)/%,$(wildcard dev/bench/*.c))
endif
tools: $(TOOLS)

$(TOOLS): %: %.o $(LIBRARY)
	$(LINK) -o $@ $^ $(LIBS)

$(BUILD)/%.o: %.c | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(INCLUDES) -c -o $@ $<

define cpu_storage
$(BUILD)/%.storage$(1).o: %.c | $(BUILD)/libraries
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) -DSTORAGE=$(1) $$(INCLUDES) -c -o $$@ $$<
endef
$(foreach storage,64 32 16,$(eval $(call cpu_storage,$(storage))))

# The programs' own code is C.
$(BUILD)/train_lighthouse.o $(BUILD)/test_lighthouse.o: $(BUILD)/%.o: %.cu | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(INCLUDES) -x c -c -o $@ $<

$(BUILD)/%.o: %.cu | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(INCLUDES) -c -o $@ $<

$(BUILD)/%.o: %.cpp | $(BUILD)/libraries
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<

# Each library is looked for by compiling and linking with it. check_library: name, header, flags, how to get it
define check_library
	@printf '#include <$(2)>\nint main(void) { return 0; }\n' | $(CC) -x c - -o $@.try $(3) 2> $@.log \
	  || { echo "error: $(1) was not found (header $(2), flags: $(3)); install it: $(4); details in $@.log" >&2; exit 1; }
endef

$(BUILD)/libraries:
	@mkdir -p $(BUILD)
	$(call check_library,OpenBLAS,cblas.h,$(OPENBLAS_FLAGS),apt-get install libopenblas-dev (or set OPENBLAS_FLAGS))
	$(call check_library,cJSON,cjson/cJSON.h,$(CJSON_FLAGS),apt-get install libcjson-dev (or set CJSON_FLAGS))
	$(call check_library,xxHash,xxhash.h,$(XXHASH_FLAGS),apt-get install libxxhash-dev (or set XXHASH_FLAGS))
ifeq ($(USE_MPI),1)
	$(call check_library,OpenMPI,mpi.h,$(MPI_CFLAGS) $(MPI_LIBS),apt-get install libopenmpi-dev (or set MPI_CFLAGS and MPI_LIBS; USE_MPI=0 builds without))
endif
ifeq ($(DEVICE),cuda)
	@[ -n "$(NVCC)" ] || { echo "error: nvcc was not found; install the CUDA Toolkit, set NVCC, or build with DEVICE=cpu" >&2; exit 1; }
	$(call check_library,cuBLASLt,cublasLt.h,$(CUDA_FLAGS) -lcublasLt -lcudart,the CUDA Toolkit has it (or set CUDA_HOME or CUDA_FLAGS))
	$(call check_library,cuDNN,cudnn.h,$(CUDA_FLAGS) -lcudnn,apt-get install libcudnn9-dev-cuda-13 (or set CUDA_FLAGS))
	$(call check_library,NCCL,nccl.h,$(CUDA_FLAGS) -lnccl -lcudart,apt-get install libnccl-dev (or set CUDA_FLAGS))
	@[ -f $(CUDNN_FRONTEND)/cudnn_frontend.h ] || { echo "error: cudnn_frontend.h was not found in $(CUDNN_FRONTEND); install it: scripts/setup.sh (or set CUDNN_FRONTEND)" >&2; exit 1; }
endif
	@rm -f $@.try $@.log
	@touch $@

test: all
	dev/test/run.sh

# What tests preload into the program: a disk that fails, a processor that does.
build/%.so: dev/test/preload/%.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g $(WARNINGS) $(filter -I%,$(MPI_CFLAGS)) -shared -fPIC -o $@ $< -ldl -lm

# Fuzz targets, for clang: dev/test/fuzz/harness.h says how to run them.
FUZZ_CC ?= clang
FUZZ_FLAGS := -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  -Wall -Wextra -Wno-source-uses-openmp -Wno-unused-parameter -Wno-unused-but-set-variable -D_GNU_SOURCE -Illmc
FUZZED := $(wildcard llmc/base/*.c llmc/parallel/*.c) $(patsubst %,llmc/%.c,checkpoint/checkpoint checkpoint/directory \
  checkpoint/safetensors model/config model/parameters run/dataset)
FUZZ_TARGETS := $(patsubst dev/test/fuzz/%.c,build/fuzz/%,$(filter-out %/harness.c,$(wildcard dev/test/fuzz/*.c)))

fuzz: $(FUZZ_TARGETS)

$(FUZZ_TARGETS): build/fuzz/%: dev/test/fuzz/%.c dev/test/fuzz/harness.c dev/test/fuzz/harness.h $(FUZZED) $(wildcard llmc/*/*.h)
	@mkdir -p build/fuzz/corpus/$*
	$(FUZZ_CC) $(FUZZ_FLAGS) $(filter -I%,$(CJSON_FLAGS) $(XXHASH_FLAGS)) -Wl,--wrap=exit,--wrap=calloc,--wrap=free,--wrap=glob,--wrap=globfree \
	  -o $@ $(filter %.c,$^) $(filter-out -I%,$(CJSON_FLAGS) $(XXHASH_FLAGS)) -lm -lpthread

clean:
	rm -rf build train_lighthouse test_lighthouse

FORCE:
.PHONY: all tools test fuzz clean FORCE
.SECONDARY:

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
