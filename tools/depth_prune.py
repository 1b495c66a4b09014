from video_papr.cli.depth_prune import main

if __name__ == "__main__":
    main()
