from clasp_kernels.cli import main

if __name__ == "__main__":  # `clasp batch` spawns processes, which import this module again
    main()
